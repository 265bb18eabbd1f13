"""A pretended GPU for rehearsals: everything runs, and no figure means anything.

    TRITON_INTERPRET=1 python -m tools.gpu_check.pretended MODULE ARGUMENTS...
    TRITON_INTERPRET=1 pytest -p tools.gpu_check.pretended ...

Tensors stay on the CPU, our Triton kernels are interpreted, the CUDA kernels are absent, and clocks
and memory are made up. The rest is real: the sides, their tables, the check against float64, the
records.
"""

import importlib
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from torch.overrides import TorchFunctionMode

FACTS = {"gpu": "pretended, there is none", "gpu_memory_bytes": 0, "rehearsed": True}
SMALL = {"hidden": 16, "vocab": 150, "speech": (100, 150)}
ROWS = {"rows": 5}
STEP = {"boundary": (98, 99), "length": 8, "text_tokens": 1, "speech_tokens": 2, "anchor_tokens": 3}


def _where(value: Any) -> Any:
    return "cpu" if isinstance(value, str) and value.startswith("cuda") else value


class OnCpu(TorchFunctionMode):
    """Replaces the GPU by the CPU in the arguments of every torch call."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        moved = {name: _where(value) for name, value in (kwargs or {}).items()}
        return func(*map(_where, args), **moved)


class Clock:
    """The host's clock, without CPU time and memory."""

    def time(self, run):
        before = time.perf_counter()
        run()
        return time.perf_counter() - before, 0.0

    def peak_extra_bytes(self, run):
        run()


@contextmanager
def pretended() -> Iterator[None]:
    """Makes torch, this package and its benchmarks find a GPU."""
    from benchmarks import case, gpu, timing
    from wavalign_fast.ops import cuda

    idle = mock.Mock(return_value=0)
    with ExitStack() as stack:
        enter = stack.enter_context
        for name in ("synchronize", "empty_cache", "max_memory_allocated"):
            enter(mock.patch.object(torch.cuda, name, idle))
        enter(mock.patch.object(torch.cuda, "is_available", lambda: True))
        enter(mock.patch.object(torch.cuda, "get_device_capability", lambda device=None: (9, 0)))
        enter(mock.patch.object(cuda, "status", lambda device=None: "it is only pretended"))
        enter(mock.patch.object(timing, "CudaClock", Clock))
        enter(mock.patch.object(gpu, "describe", lambda: FACTS))
        enter(mock.patch.object(gpu, "captured", lambda run: (run, run())))
        enter(mock.patch.object(case, "CAPTURES_MAY_FAIL", True))
        enter(OnCpu())
        yield


def shrunk(shape: Any) -> Any:
    """The shape under its own name, small enough for an interpreter."""
    step = hasattr(shape, "rollouts")
    return replace(shape, **SMALL, **(STEP if step else ROWS))


@contextmanager
def tiny() -> Iterator[None]:
    """Makes shapes and rounds small, and compiles nothing."""

    def small(comparison: Any) -> Any:
        providers = tuple(name for name in comparison.providers if name != bench.COMPILED)
        return replace(comparison, shape=shrunk(comparison.shape), providers=providers)

    bench = importlib.import_module("tools.gpu_check.bench")
    step_profile = importlib.import_module("tools.gpu_check.step_profile")
    # The last comparison of a part has all of its sides.
    parts = {name: (small(part[-1]),) for name, part in bench.PARTS.items()}
    with (
        mock.patch.object(bench, "PARTS", parts),
        mock.patch.object(bench, "ROUNDS", 2),
        mock.patch.object(step_profile, "SHAPE", shrunk(step_profile.SHAPE)),
        mock.patch.multiple(step_profile, DEVICE="CPU", ACTIVITIES=step_profile.ACTIVITIES[:1]),
        mock.patch.multiple(step_profile, WARM_UPS=1, TIMED=1, PROFILED=1),
    ):
        yield


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    stack = ExitStack()
    stack.enter_context(pretended())
    config.add_cleanup(stack.close)


def main(module: str, *arguments: str) -> None:
    if os.environ.get("TRITON_INTERPRET") != "1":
        sys.exit("TRITON_INTERPRET: want 1, or Triton's kernels would be compiled for a GPU")
    with pretended(), tiny():
        # Not by runpy, which would load a second, unpatched copy of the module.
        sys.exit(importlib.import_module(module).main(*arguments))


if __name__ == "__main__":
    main(*sys.argv[1:])
