"""Results of a stateful forward pass, for when activation checkpointing computes it again.

The backward pass then repeats the forward pass. State that changed in the first must not change
again, and the second must get the results of the first.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import (
    _disable_current_modes,
    _get_current_dispatch_mode_stack,
)

MAX_STEPS = 16


@contextmanager
def unseen_by_checkpointing() -> Iterator[None]:
    """Hides ops that only the first pass runs from selective activation checkpointing.

    It matches the ops of the two passes by their order. With an op missing in the second pass it
    would return the results of another.
    """
    modes = [type(mode).__module__ for mode in _get_current_dispatch_mode_stack()]
    if modes and all(module == "torch.utils.checkpoint" for module in modes):
        with _disable_current_modes():
            yield
    else:
        yield


class _Step(NamedTuple):
    number: int
    rewards: torch.Tensor
    rl_weight: torch.Tensor
    result: Any


class RecomputedSteps:
    """The last steps, at most ``MAX_STEPS``, whose backward pass may still come."""

    def __init__(self) -> None:
        self._steps: list[_Step] = []
        self._count = 0
        self._last_asked = -1

    @staticmethod
    def asked() -> bool:
        """Whether this call is inside a backward pass."""
        return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1

    def note(self, rewards: torch.Tensor, rl_weight: torch.Tensor, result: Any) -> None:
        """Remembers a step. Steps up to the last one that was computed again are dropped."""
        if torch.compiler.is_compiling():
            return
        waiting = [step for step in self._steps if step.number > self._last_asked]
        waiting.append(_Step(self._count, rewards, rl_weight, result))
        self._steps, self._count = waiting[-MAX_STEPS:], self._count + 1

    def of(self, rewards: torch.Tensor) -> Any:
        """The result of the step that had these rewards.

        Raises:
            RuntimeError: no step had them, or several with different λ.
        """
        found = [step for step in self._steps if step.rewards is rewards]
        found = found or [step for step in self._steps if _same_bits(step.rewards, rewards)]
        if len(found) == 0 or any(
            not torch.equal(step.rl_weight, found[0].rl_weight) for step in found
        ):
            raise RuntimeError(
                f"MixingGate: got rewards of {len(found)} steps that wait for a backward pass, "
                "want one: activation checkpointing computes the step again and needs its λ. "
                "Compute λ before, and pass rl_weight=gate(rewards) to the objective"
            )
        self._last_asked = max(self._last_asked, found[-1].number)
        return found[-1].result


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tables of rewards are equal bit for bit, so that NaN equals NaN."""
    if one.shape != other.shape or one.device != other.device:
        return False
    left, right = (t.to(torch.float64).view(torch.int64) for t in (one, other))
    return torch.equal(left, right)
