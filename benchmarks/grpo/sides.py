"""What is compared: trainers with settings, one run of each, and the check of their gradients."""

import contextlib
import importlib.util
import os
import resource
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .clock import Clock
from .work import Ready, Recorded, Size

WARM = 1
"""First steps that are not timed: they fill caches."""
TRL_PACKAGES = ("trl", "datasets", "accelerate")


@dataclass(frozen=True, kw_only=True)
class Side:
    """A trainer with its settings."""

    label: str
    ours: bool
    tolerance: float
    """The largest distance of its gradient from our fp32 one, relative to that one's norm."""
    settings: Callable[[Size], Mapping[str, Any]] = field(default=lambda size: {})
    fused_head: bool = False
    """TRL's trainer over our head."""

    def prepare(self, size: Size, task: Recorded, **arguments: Any) -> Ready:
        if self.ours:
            from . import ours

            return ours.prepare(size, task, self.settings(size), **arguments)
        from . import trl_side

        return trl_side.prepare(
            size, task, self.settings(size), fused_head=self.fused_head, **arguments
        )


def _trl_defaults(size: Size) -> Mapping[str, Any]:
    return {"bf16": True, "gradient_checkpointing": True, "per_device_train_batch_size": 8}


SIDES = {
    "trl": Side(
        label="TRL, its best setting here: fp32, one micro-batch, no checkpointing",
        ours=False,
        tolerance=1e-4,
    ),
    "trl-fused-head": Side(
        label="the same TRL over our head: one import changed",
        ours=False,
        tolerance=1e-4,
        fused_head=True,
    ),
    "trl-defaults": Side(
        label="TRL's defaults: bf16 autocast, micro-batches of 8, checkpointing",
        ours=False,
        tolerance=0.1,
        settings=_trl_defaults,
    ),
    "ours": Side(label="wavalign_fast, fp32", ours=True, tolerance=1e-4),
}


def missing(sides: Sequence[str]) -> str:
    """Which packages of these sides are not installed; "" if none."""
    wanted = () if all(SIDES[name].ours for name in sides) else TRL_PACKAGES
    absent = [name for name in wanted if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(absent)}; benchmarks/rivals.txt says how" if absent else ""


def run(name: str, size: Size, seed: int) -> dict[str, Any]:
    """Trains on one side; returns its seconds, its peak memory and what it sampled."""
    clock = Clock()
    task = Recorded(size.make_task(), clock.rewarding)
    with _quiet(clock) as folder:
        ready = SIDES[name].prepare(
            size, task, steps=WARM + size.steps, seed=seed, directory=folder, clip_norm=1.0
        )
        ready.fit()
    lengths = [[len(done.ids) for done in step] for step in task.completions]
    return clock.seconds(skip=WARM) | {
        "peak_MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "prompts": len({done.example.id for step in task.completions for done in step}),
        "lengths": [length for step in lengths for length in step],
        "rewards": [reward for step in task.given for reward in step],
    }


def disagreement(name: str, size: Size, seed: int) -> float:
    """How far the gradient of a side is from our fp32 one, relative to that one's norm.

    Both are of the whole model after one step on the same completions and rewards, not clipped.
    Ours are sampled first; TRL gets them instead of sampling.
    """
    task = Recorded(size.make_task())
    truth = _gradient(SIDES["ours"], size, task, seed=seed)
    side = SIDES[name]
    again = Recorded(size.make_task())
    given = {} if side.ours else {"completions": task.completions[0]}
    found = _gradient(side, size, again, seed=seed, **given)
    if sorted(again.given[0]) != sorted(task.given[0]):
        raise ValueError(f"{name}: got rewards {again.given[0]}, want {task.given[0]}")
    if found.keys() != truth.keys():
        raise ValueError(f"{name}: other weights have a gradient: {found.keys() ^ truth.keys()}")
    apart = sum((found[key] - truth[key]).square().sum() for key in truth)
    return float((apart / sum(grad.square().sum() for grad in truth.values())) ** 0.5)


def _gradient(side: Side, size: Size, task: Recorded, **given: Any) -> dict[str, Tensor]:
    """The gradient, float64, of the first step by the name of the weight."""
    found: dict[str, Tensor] = {}
    ready: Ready | None = None

    def keep() -> None:
        for key, weight in ready.model.named_parameters() if ready else ():
            if weight.grad is not None:
                found[key] = weight.grad.double()

    with _quiet(Clock(before_update=keep)) as folder:
        ready = side.prepare(size, task, steps=1, directory=folder, clip_norm=0.0, **given)
        ready.fit()
    return found


@contextlib.contextmanager
def _quiet(clock: Clock) -> Iterator[Path]:
    """A folder for a run on one thread whose output goes nowhere."""
    torch.set_num_threads(1)
    with (
        tempfile.TemporaryDirectory() as folder,
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        clock.watching(),
    ):
        yield Path(folder)
