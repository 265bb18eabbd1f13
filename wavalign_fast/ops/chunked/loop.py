"""The loop over chunks of rows that serves every GPU backend.

The rows that carry loss come compacted. A chunk of them at a time: logits from a product with fp32
results, a row kernel, then the products of the gradients. A backend brings the kernels only;
``row_ops`` itself, the definition, is one too, so that all of this runs in float64.

A row's bits do not depend on the batch, the chunk and the budget: ``products.logits_product``.
"""

import importlib
from collections.abc import Iterator
from typing import Any, Protocol

import torch

from wavalign_fast.ops.chunked.chunks import Chunks, Head, Needs, Plan, chunks_of
from wavalign_fast.ops.chunked.gradients import ChunkGradients
from wavalign_fast.ops.chunked.products import logits_product
from wavalign_fast.ops.chunked.row_ops import (
    RowGrads,
    RowStats,
    TokenTable,
    float16_power,
    token_gradient,
)

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


def row_stats(head: Head, plan: Plan) -> RowStats:
    """Statistics of every row, each [N]; no gradient, no logits beyond a chunk."""
    kernels, bias = row_kernels_of(plan.backend), _kernel_bias(head)
    return _joined(
        head,
        [
            kernels.row_stats(logits, head.targets[rows], bias, **head.settings)
            for rows, logits in _logits(head, plan, _chunks(head, plan))
        ],
    )


def row_gradients(
    head: Head, stats: RowStats, grads: RowGrads, needs: Needs, plan: Plan
) -> tuple[torch.Tensor | None, ...]:
    """Gradients to hidden, weight and bias, from logits made again."""
    kernels, bias = row_kernels_of(plan.backend), _kernel_bias(head)
    moving = head._replace(hidden=head.hidden[: plan.moving])
    chunks = _chunks(moving, plan)
    sums = ChunkGradients(head, needs, plan, chunks, kernels.scale_)
    for rows, logits in _logits(moving, plan, chunks):
        dlogits, power = _row_gradient(
            *(kernels, head, bias, logits, head.targets[rows]),
            RowStats(*(value[rows] for value in stats)),
            RowGrads(*(None if grad is None else grad[rows] for grad in grads)),
        )
        sums.add(rows, dlogits, power)
    return sums.finish()


def hybrid_step(
    head: Head, table: TokenTable, clip: tuple[float, float] | None, needs: Needs, plan: Plan
) -> tuple[RowStats, tuple[torch.Tensor | None, ...]]:
    """Statistics [N] and the gradients of the hybrid loss: three products.

    The gradients of float16 operands are in fp32: they wait for the loss's own factor.
    """
    kernels, bias, chunks = row_kernels_of(plan.backend), _kernel_bias(head), _chunks(head, plan)
    sums = ChunkGradients(head, needs, plan, chunks, kernels.scale_, rounded=False)
    found = []
    for rows, logits in _logits(head, plan, chunks):
        columns = TokenTable._make(None if column is None else column[rows] for column in table)
        part, dlogits, power = _hybrid_rows(
            kernels, head, bias, logits, head.targets[rows], columns, clip
        )
        found.append(part)
        sums.add(rows, dlogits, power)
    return _joined(head, found), sums.finish()


def _hybrid_rows(
    kernels: RowKernels,
    head: Head,
    bias: torch.Tensor | None,
    logits: torch.Tensor,
    targets: torch.Tensor,
    table: TokenTable,
    clip: tuple[float, float] | None,
) -> tuple[RowStats, torch.Tensor, torch.Tensor | None]:
    """A chunk's statistics, dL/dlogits, and the power of two in each row of these, if any.

    float16 takes two kernels, for its powers come from g, which comes from the log-probs.
    """
    if head.weight.dtype != torch.float16:
        stats, _, dlogits = kernels.hybrid_rows_(
            *(logits, targets, bias, table),
            clip=clip,
            out_dtype=head.weight.dtype,
            **head.settings,
        )
        return stats, dlogits, None
    stats = kernels.row_stats(logits, targets, bias, **head.settings)
    g = torch.where(targets == head.ignore_index, 0.0, token_gradient(stats.logp, table, clip))
    dlogits, power = _row_gradient(kernels, head, bias, logits, targets, stats, RowGrads(logp=g))
    return stats, dlogits, power


def _row_gradient(
    kernels: RowKernels,
    head: Head,
    bias: torch.Tensor | None,
    logits: torch.Tensor,
    targets: torch.Tensor,
    stats: RowStats,
    grads: RowGrads,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """dL/dlogits of a chunk, and the power of two in each of its rows, for float16."""
    power = None
    if head.weight.dtype == torch.float16:
        power = float16_power(targets, stats, grads, **head.settings)
        grads = RowGrads(*(None if grad is None else grad * power for grad in grads))
    dlogits = kernels.row_gradient_(
        *(logits, targets, bias, stats, grads), out_dtype=head.weight.dtype, **head.settings
    )
    return dlogits, power


def _chunks(head: Head, plan: Plan) -> Chunks:
    return chunks_of(len(head.hidden), head.weight.shape[0], head.stats_dtype.itemsize, plan)


def _logits(head: Head, plan: Plan, chunks: Chunks) -> Iterator[tuple[slice, torch.Tensor]]:
    """Rows and their logits [R, V], which the next chunk overwrites."""
    vocab = head.weight.shape[0]
    buffer = head.hidden.new_empty((chunks.buffer_rows, chunks.pitch), dtype=head.stats_dtype)
    for rows in chunks.rows:
        states, out = head.hidden[rows], buffer[:, :vocab]
        logits_product(states, head.weight, out, same_bits=plan.same_bits)
        yield rows, out[: len(states)]


def _kernel_bias(head: Head) -> torch.Tensor | None:
    """The bias as row kernels take it: in the type of the statistics, on 16 bytes."""
    if head.bias is None:
        return None
    bias = head.bias.to(head.stats_dtype).contiguous()
    return bias if bias.data_ptr() % 16 == 0 else bias.clone()


def _joined(head: Head, parts: list[RowStats]) -> RowStats:
    """The chunks' statistics, each [N]."""
    if len(parts) == 1:
        return parts[0]
    if not parts:
        none = head.hidden.new_empty(0, dtype=head.stats_dtype)
        return RowStats(*(none.clone() for _ in RowStats._fields))
    return RowStats(*map(torch.cat, zip(*parts, strict=True)))
