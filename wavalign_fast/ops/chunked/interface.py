"""What the chunk loop asks of a backend: seven functions, and the tables that they take."""

from typing import NamedTuple, Protocol

import torch

from wavalign_fast.ops.token_math import TokenTable

PITCH_ALIGN = 64
"""Rows of logits are a multiple of this many elements apart, so that each starts on 16 bytes."""


class RowChunk(NamedTuple):
    """A chunk of rows as a row kernel takes it. The kernel computes with ``z = logits * scale +
    bias``."""

    logits: torch.Tensor
    """[R, V] float; each row is contiguous. Rows may lie further apart than V elements."""
    targets: torch.Tensor
    """[R] int64; ``ignore_index`` marks a dead row."""
    bias: torch.Tensor | None
    """[V] in the type of the statistics; ``-inf`` bans an id."""
    scale: float
    ignore_index: int


class RowStats(NamedTuple):
    """Statistics of each row, each [R]; 0 in dead rows, NaN where the target is not an id."""

    logp: torch.Tensor
    entropy: torch.Tensor
    top: torch.Tensor
    """The largest logit."""
    log_sum: torch.Tensor
    """``log Σ exp(z - top)``. It is kept apart from ``top``: where all logits are far from 0, the
    fp32 sum of the two would round it away, and the gradient with it."""


def is_top(logp: torch.Tensor, log_sum: torch.Tensor) -> torch.Tensor:
    """Whether the target is the row's most likely id, [R] bool; of no meaning in dead rows.

    ``-log_sum`` is the log-prob of an id with the largest logit, and has the bits that ``logp``
    would have for it.
    """
    return logp == -log_sum


class RowGrads(NamedTuple):
    """The loss's derivatives by a row's results, each [R]; ``None`` is 0."""

    logp: torch.Tensor | None
    entropy: torch.Tensor | None = None
    lse: torch.Tensor | None = None


class RowOps(Protocol):
    """The functions of a backend that compute on the rows of a chunk of logits."""

    def row_stats(self, chunk: RowChunk) -> RowStats: ...

    def row_gradient_(
        self, chunk: RowChunk, stats: RowStats, grads: RowGrads, *, out_dtype: torch.dtype
    ) -> torch.Tensor: ...

    def hybrid_rows_(
        self,
        chunk: RowChunk,
        table: TokenTable,
        *,
        clip: tuple[float, float] | None,
        out_dtype: torch.dtype,
    ) -> tuple[RowStats, torch.Tensor, torch.Tensor]: ...


class RowKernels(RowOps, Protocol):
    """All functions that a backend provides. ``chunked.row_ops`` defines what each computes; all
    of them return without a host sync."""

    def compact_rows(
        self, live: torch.Tensor, *, capacity: int
    ) -> tuple[torch.Tensor, torch.Tensor]: ...

    def gather_rows(self, source: torch.Tensor, index: torch.Tensor) -> torch.Tensor: ...

    def scatter_rows_(
        self, rows: torch.Tensor, index: torch.Tensor, target: torch.Tensor
    ) -> torch.Tensor: ...

    def scale_(self, gradient: torch.Tensor, factor: torch.Tensor) -> torch.Tensor: ...
