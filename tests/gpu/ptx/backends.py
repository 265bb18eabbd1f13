"""Both backends behind the signatures of ``wavalign_fast/ops/chunked/row_ops.py``, emulated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import pytest
import torch

from tests.gpu.cuda_on_cpu.cases import Device
from wavalign_fast.ops.chunked.interface import RowGrads, RowStats
from wavalign_fast.ops.token_math import TokenTable

from .cuda_kernels import PtxKernels
from .emulator import Conditions, Counts
from .runtime.compiled import CompiledSource

Source = Callable[[str], CompiledSource]

# What the driver lets one block have (CUDA C++ Programming Guide, compute capabilities).
SHARED_BYTES = {80: 166912, 90: 232448}
TARGETS = {80: "sm_80", 90: "sm_90a"}
BACKENDS = [f"{name}-{target}" for name in ("triton", "cuda") for target in TARGETS.values()]

EVERY_CONDITION = (
    Conditions(),
    Conditions(order=1, late_copies=False),
    Conditions(order=2, approximate=3),
)
"""Together with late copies, and apart in two orders: with early copies, and with functions as
inexact as the ISA lets them be."""


class RowKernels(Protocol):
    counted: list[Counts]
    kernels: list[str]

    def row_stats(
        self,
        logits: torch.Tensor,
        targets: torch.Tensor,
        bias: torch.Tensor | None,
        *,
        scale: float,
        ignore_index: int,
    ) -> RowStats: ...

    def row_gradient_(
        self,
        logits: torch.Tensor,
        targets: torch.Tensor,
        bias: torch.Tensor | None,
        stats: RowStats,
        grads: RowGrads,
        *,
        scale: float,
        ignore_index: int,
        out_dtype: torch.dtype,
    ) -> torch.Tensor: ...

    def hybrid_rows_(
        self,
        logits: torch.Tensor,
        targets: torch.Tensor,
        bias: torch.Tensor | None,
        table: TokenTable,
        *,
        scale: float,
        ignore_index: int,
        clip: tuple[float, float] | None,
        out_dtype: torch.dtype,
    ) -> tuple[RowStats, torch.Tensor, torch.Tensor]: ...


def row_kernels(
    name: str, source: Source, conditions: Conditions | None = None, **options: Any
) -> RowKernels:
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
