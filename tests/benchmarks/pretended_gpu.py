"""A child process of test_gpu: the benchmarks with ``device="cuda"``, where there is none.

Tensors stay on the CPU, our Triton kernels are interpreted, clocks and memory are made up. What is
real is the rest: which sides there are, their tables, the gate, the records.
"""

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode

from benchmarks import bench_dpo, bench_hybrid_loss, bench_linear_logprob, case, gpu
from benchmarks.options import Options
from benchmarks.shapes import DPO, LOGPROB, QUICK
from wavalign_fast.ops import cuda


def _where(value: Any) -> Any:
    return "cpu" if isinstance(value, str) and value.startswith("cuda") else value


class OnCpu(TorchFunctionMode):
    """Every call that names the GPU gets the CPU."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        moved = {name: _where(value) for name, value in (kwargs or {}).items()}
        return func(*map(_where, args), **moved)


class Clock:
    def time(self, run):
        before = time.perf_counter()
        run()
        return time.perf_counter() - before, 0.0

    def peak_extra_bytes(self, run):
        run()


def main(folder: Path) -> None:
    options = Options(device="cuda", dtypes=("fp32",), rounds=2, directory=folder, quick=True)
    small = {"hidden": 32, "vocab": 600, "speech": (400, 600)}
    cases = [
        lambda operation=operation: bench_linear_logprob.make_case(
            replace(LOGPROB["quick"], rows=20, **small), "fp32", operation, options
        )
        for operation in ("logp+entropy", "mean CE")
    ]
    cases += [
        lambda: bench_hybrid_loss.make_case(
            replace(QUICK, boundary=(398, 399), **small), "fp32", options
        ),
        lambda: bench_dpo.make_case(
            replace(DPO["quick"], pairs=2, length=9, **small), "fp32", options
        ),
    ]
    facts = {"gpu": "pretended", "gpu_memory_bytes": 0}
    with (
        OnCpu(),
        mock.patch.object(torch.cuda, "is_available", lambda: True),
        mock.patch.object(cuda, "status", lambda device=None: "it is only pretended"),
        mock.patch.object(gpu, "CudaClock", Clock),
        mock.patch.object(case.timing, "CudaClock", Clock),
        mock.patch.object(gpu, "describe", lambda: facts),
        mock.patch.object(gpu, "captured", lambda run: (run, run())),
        mock.patch.object(case, "CAPTURES_MAY_FAIL", True),
    ):
        sys.exit(case.run_cases("pretended", cases, options))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
