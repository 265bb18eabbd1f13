"""Every configuration compiles for every target, within its limits and its budget."""

import re
from pathlib import Path

import pytest

pytest.importorskip("triton")

import triton

from tests.gpu.budgets.triton import budgets
from tests.gpu.budgets.triton.compile import CASES, TARGETS

ROOT = Path(__file__).parents[4]


def test_every_release_that_is_tested_has_its_table():
    """Without a table the tests below skip the release, which CI would not notice."""
    lists = [ROOT / "pyproject.toml", *(ROOT / "tools" / "releases").glob("*.txt")]
    texts = [path.read_text(encoding="utf-8") for path in lists]
    releases = [re.search(r"\btriton==([\d.]+)", text)[1] for text in texts]
    missing = [release for release in releases if not budgets.table_of(release).exists()]
    assert missing == []


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", CASES)
def test_a_kernel_keeps_its_budget(case, target):
    found = budgets.measured(case, target)
    broken = budgets.broken_rules(case, target, found)
    assert not broken, "\n".join(broken)
    table = budgets.read()
    if table is None:
        pytest.skip(f"keeps the rules of every release; triton {triton.__version__} has no table")
    moved = budgets.moved(table[case][target], found)
    assert not moved, "\n".join(moved) + "\nIf that is meant: python -m tests.gpu.budgets.triton"
