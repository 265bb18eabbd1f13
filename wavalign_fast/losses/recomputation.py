"""Results of a stateful forward pass, for a backward pass that runs it again.

Activation checkpointing computes a step twice. What moved in the first pass must not move in the
second, and must give what it gave.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import (
    _disable_current_modes,
    _get_current_dispatch_mode_stack,
)

MOST_STEPS = 16


@contextmanager
def unseen_by_checkpointing() -> Iterator[None]:
    """Hides what runs in the first pass alone from selective activation checkpointing.

    It matches the ops of both passes by their order, and would hand out another op's results.
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
    """The steps whose backward pass may still come: at most the last ``MOST_STEPS``."""

    def __init__(self) -> None:
        self._steps: list[_Step] = []
        self._count = 0
        self._last_asked = -1

    @staticmethod
    def asked() -> bool:
        """Whether this call is a part of a backward pass."""
        return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1

    def note(self, rewards: torch.Tensor, rl_weight: torch.Tensor, result: Any) -> None:
        """Remembers a step; those up to one that was asked for again are over."""
        if torch.compiler.is_compiling():
            return
        waiting = [step for step in self._steps if step.number > self._last_asked]
        waiting.append(_Step(self._count, rewards, rl_weight, result))
        self._steps, self._count = waiting[-MOST_STEPS:], self._count + 1

    def of(self, rewards: torch.Tensor) -> Any:
        """The result of the step with these rewards.

        Raises:
            RuntimeError: there is none, or there are several that differ in λ.
        """
        found = [step for step in self._steps if step.rewards is rewards]
        found = found or [step for step in self._steps if _same_bits(step.rewards, rewards)]
        if len(found) == 0 or any(
            not torch.equal(step.rl_weight, found[0].rl_weight) for step in found
        ):
            raise RuntimeError(
                f"MixingGate: got rewards of {len(found)} steps that wait for a backward pass, "
                "want one, where activation checkpointing computes a step again: compute λ before, "
                "and pass rl_weight=gate(rewards) to the objective"
            )
        self._last_asked = max(self._last_asked, found[-1].number)
        return found[-1].result


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tables of rewards are the same, NaN where the other has NaN."""
    if one.shape != other.shape or one.device != other.device:
        return False
    return torch.equal(*(t.to(torch.float64).view(torch.int64) for t in (one, other)))
