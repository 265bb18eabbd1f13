"""Seconds of the phases of a step, from hooks that any trainer passes.

The reward function ends the rollout and begins the forward pass; torch's hooks of optimizers end
the backward pass and the step. So both trainers have one clock, and no code of theirs is replaced.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

PHASES = ("rollout", "reward", "forward_backward", "optimizer")
"""In the order of a step. What a trainer does between two steps, logging for example, counts as
rollout; what it does before and after the backward pass, clipping for example, with that."""


@dataclass
class Clock:
    """The marks of a run: its (CPU seconds, wall seconds) at the four borders of each step.

    Args:
        before_update: called before each update of the weights, when the gradients are complete.
    """

    before_update: Callable[[], None] = lambda: None
    marks: list[tuple[float, float]] = field(default_factory=list)

    def mark(self) -> None:
        self.marks.append((time.process_time(), time.perf_counter()))

    def rewarding(self, over: bool) -> None:
        """Marks the begin and the end of the reward function."""
        if len(self.marks) % len(PHASES) != int(over):
            raise ValueError(f"rewards after {len(self.marks)} marks, want one call a step")
        self.mark()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Marks each update of the weights meanwhile."""

        def before(*_: Any) -> None:
            self.before_update()
            self.mark()

        hooks = (
            register_optimizer_step_pre_hook(before),
            register_optimizer_step_post_hook(lambda *_: self.mark()),
        )
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def seconds(self, *, skip: int) -> dict[str, Any]:
        """Means over the steps after the first ``skip`` (at least 1): CPU seconds by phase and of
        the whole step, and its wall seconds."""
        size = len(PHASES)
        timed = self.marks[skip * size - 1 :]
        steps = (len(timed) - 1) // size
        phases = {
            name: sum(
                timed[i * size + place + 1][0] - timed[i * size + place][0] for i in range(steps)
            )
            / steps
            for place, name in enumerate(PHASES)
        }
        (cpu, wall), (cpu_end, wall_end) = timed[0], timed[steps * size]
        return {
            "cpu_s": (cpu_end - cpu) / steps,
            "wall_s": (wall_end - wall) / steps,
            "phases_cpu_s": phases,
        }
