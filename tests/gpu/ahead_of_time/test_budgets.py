"""Every configuration compiles for every target, within its limits and as the table says."""

import pytest

pytest.importorskip("triton")

import triton

from tests.gpu.ahead_of_time import budgets
from tests.gpu.ahead_of_time.compile import CASES, TARGETS


def test_the_pinned_triton_compiles():
    """Registers and instructions differ between releases: another one may not pass as this one."""
    assert triton.__version__ == budgets.pinned_triton()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", CASES)
def test_a_kernel_keeps_its_budget(case, target):
    found = budgets.measured(case, target)
    broken = budgets.broken_rules(case, target, found)
    assert not broken, "\n".join(broken)
    moved = budgets.moved(budgets.read()[case][target], found)
    assert not moved, (
        "\n".join(moved) + "\nIf that is meant: python -m tests.gpu.ahead_of_time.budgets"
    )
