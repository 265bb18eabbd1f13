"""Counting steps with a non-finite gradient."""

import pytest

from wavalign_fast.errors import UserError
from wavalign_fast.train.nonfinite_guard import NonFiniteGuard


def record(guard, *finite):
    for step, good in enumerate(finite, start=1):
        guard.record(finite=good, step=step, loss=1.0, grad_norm=2.0)


def test_a_finite_step_starts_the_count_anew():
    guard = NonFiniteGuard(3)
    record(guard, False, False, True, False, False, True)
    assert (guard.skipped, guard.in_a_row) == (4, 0)
    with pytest.raises(UserError, match=r"step 3: .* not finite 3 steps in a row"):
        record(guard, False, False, False)


def test_the_counts_outlive_a_restart():
    guard = NonFiniteGuard(3)
    record(guard, False, False)
    restored = NonFiniteGuard(3)
    restored.load_state_dict(guard.state_dict())
    with pytest.raises(UserError, match="not finite 3 steps in a row"):
        record(restored, False)
    assert restored.skipped == 3
