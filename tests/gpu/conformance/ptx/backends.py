"""Both backends, emulated, behind the row kernels' interface (``ops/chunked/interface.py``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import pytest

from tools.cuda_on_cpu.cases import Device
from tools.ptx_emulator import Conditions, Counts
from wavalign_fast.ops.chunked.interface import RowOps

from .compiled import CompiledSource
from .cuda_kernels import PtxKernels

Source = Callable[[str], CompiledSource]

# The most that one block may have (CUDA C++ Programming Guide, compute capabilities).
SHARED_BYTES = {80: 166912, 90: 232448}
TARGETS = {80: "sm_80", 90: "sm_90a"}
BACKENDS = [f"{name}-{target}" for name in ("triton", "cuda") for target in TARGETS.values()]

EVERY_CONDITION = (
    Conditions(),
    Conditions(order=1, late_copies=False),
    Conditions(order=2, approximate=3),
)
"""Warps together, with late copies; apart, with early copies; apart in another order, with
functions as inexact as the ISA allows."""


class EmulatedRowKernels(RowOps, Protocol):
    """An emulated backend, and what was launched."""

    counted: list[Counts]
    kernels: list[str]


def row_kernels(
    name: str, source: Source, conditions: Conditions | None = None, **options: Any
) -> EmulatedRowKernels:
    """A backend of ``BACKENDS``; options are those of both emulated backends."""
    conditions = conditions or Conditions()
    family, target = name.split("-")
    if family == "cuda":
        return cuda_kernels(source, 80 if target == "sm_80" else 90, conditions, **options)
    pytest.importorskip("triton")
    from .triton_kernels import TritonRowKernels

    return TritonRowKernels(target, conditions, **options)


def cuda_kernels(
    source: Source,
    arch: int,
    conditions: Conditions,
    *,
    shared_bytes: int | None = None,
    **options: Any,
) -> PtxKernels:
    device = Device(arch=arch, shared_bytes=shared_bytes or SHARED_BYTES[arch])
    return PtxKernels(source=source, device=device, conditions=conditions, **options)
