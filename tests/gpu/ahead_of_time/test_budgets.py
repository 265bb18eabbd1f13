"""Every configuration compiles for every target, within its limits and as the table says."""

import pytest

pytest.importorskip("triton")

import triton

from tests.gpu.ahead_of_time import budgets
from tests.gpu.ahead_of_time.compile import CASES, TARGETS

MOVES_ROWS = {"row_stats", "row_gradient", "hybrid_rows", "score_parts"}
MOVES_ROWS |= {"gather_rows", "scatter_rows"}


def test_the_pinned_triton_compiles():
    """Registers and instructions differ between releases: another one may not pass as this one."""
    assert triton.__version__ == budgets.pinned_triton()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", CASES)
def test_a_kernel_keeps_its_budget(case, target):
    found = budgets.measured(case, target)
    for kernel, taken in found.items():
        assert taken.spills == 0, f"{kernel} spills {taken.spills} bytes and instructions"
        assert taken.shared <= TARGETS[target].shared_per_program
        assert taken.programs >= 1
        if kernel == "score_parts":
            assert taken.matrix or (case == "score/fp32" and target != "gfx942")
        if kernel in MOVES_ROWS and not case.endswith("-odd"):
            assert taken.wide > 0, f"{kernel} moves no 16 bytes at a time"
    moved = budgets.moved(budgets.read()[case][target], found)
    assert not moved, (
        "\n".join(moved) + "\nIf that is meant: python -m tests.gpu.ahead_of_time.budgets"
    )
