"""What the chunk loop asks of a backend: its row kernels, and the tables that they take."""

import importlib
from typing import Any, NamedTuple, Protocol

import torch


class RowStats(NamedTuple):
    """Statistics of each row, each [R]; 0 in dead rows, NaN where the target is not an id."""

    logp: torch.Tensor
    entropy: torch.Tensor
    top: torch.Tensor
    """The largest logit."""
    log_sum: torch.Tensor
    """``log Σ exp(z - top)``: apart from ``top``, for in the fp32 sum of the two a far offset
    rounds it away, and the gradient with it."""


class RowGrads(NamedTuple):
    """The loss's derivatives by a row's results, each [R]; ``None`` is 0."""

    logp: torch.Tensor | None
    entropy: torch.Tensor | None = None
    lse: torch.Tensor | None = None


MODULES = {
    "cuda": "wavalign_fast.ops.cuda",
    "triton": "wavalign_fast.ops.triton",
    "definition": "wavalign_fast.ops.chunked.row_ops",
}
"""Where each backend's row kernels are; imported on first use."""


class RowKernels(Protocol):
    """The functions of a backend, which all return without waiting for the device;
    ``ops.chunked.row_ops`` says what they compute."""

    def row_stats(self, *operands: Any, **settings: Any) -> RowStats: ...

    def row_gradient_(self, *operands: Any, **settings: Any) -> torch.Tensor: ...

    def hybrid_rows_(
        self, *operands: Any, **settings: Any
    ) -> tuple[RowStats, torch.Tensor, torch.Tensor]: ...

    def compact_rows(
        self, live: torch.Tensor, *, capacity: int
    ) -> tuple[torch.Tensor, torch.Tensor]: ...

    def gather_rows(self, source: torch.Tensor, index: torch.Tensor) -> torch.Tensor: ...

    def scatter_rows_(
        self, rows: torch.Tensor, index: torch.Tensor, target: torch.Tensor
    ) -> torch.Tensor: ...

    def scale_(self, gradient: torch.Tensor, factor: torch.Tensor) -> torch.Tensor: ...


def row_kernels_of(backend: str) -> RowKernels:
    """The backend's row kernels."""
    kernels: Any = importlib.import_module(MODULES[backend])
    return kernels
