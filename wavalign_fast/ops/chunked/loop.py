"""The loop over chunks of rows that serves every GPU backend.

The rows that carry loss come compacted. A chunk of them at a time: logits from a product with fp32
results, a row kernel, then the products of the gradients. A backend brings the kernels only;
``row_ops``, their definition, is a backend too, so that all of this runs in float64.

A row's bits do not depend on the batch, the chunk and the budget: ``products.logits_product``.
"""

from collections.abc import Iterator

import torch

from wavalign_fast.ops.chunked import interface
from wavalign_fast.ops.chunked.chunks import ChunkOptions, Chunks, Head, Needs, chunks_of
from wavalign_fast.ops.chunked.gradients import ChunkGradients, float16_power
from wavalign_fast.ops.chunked.interface import RowGrads, RowKernels, RowStats
from wavalign_fast.ops.chunked.products import logits_product
from wavalign_fast.ops.token_math import TokenTable, token_gradient


def chunked_row_stats(head: Head, options: ChunkOptions) -> RowStats:
    """Statistics of every row, each [N]; no gradient, no logits beyond a chunk."""
    kernels, bias = interface.row_kernels_of(options.backend), _kernel_bias(head)
    return _joined(
        head,
        [
            kernels.row_stats(logits, head.targets[rows], bias, **head.settings)
            for rows, logits in _logits(head, options, _chunks(head, options))
        ],
    )


def chunked_row_gradients(
    head: Head, stats: RowStats, grads: RowGrads, needs: Needs, options: ChunkOptions
) -> tuple[torch.Tensor | None, ...]:
    """Gradients to hidden, weight and bias, from logits made again."""
    kernels, bias = interface.row_kernels_of(options.backend), _kernel_bias(head)
    with_gradient = head._replace(hidden=head.hidden[: options.grad_rows])
    chunks = _chunks(with_gradient, options)
    sums = ChunkGradients(head, needs, options, chunks, kernels.scale_)
    for rows, logits in _logits(with_gradient, options, chunks):
        dlogits, power = _row_gradient(
            *(kernels, head, bias, logits, head.targets[rows]),
            RowStats(*(value[rows] for value in stats)),
            RowGrads(*(None if grad is None else grad[rows] for grad in grads)),
        )
        sums.add(rows, dlogits, power)
    return sums.finish()


def chunked_hybrid_rows(
    head: Head,
    table: TokenTable,
    clip: tuple[float, float] | None,
    needs: Needs,
    options: ChunkOptions,
) -> tuple[RowStats, tuple[torch.Tensor | None, ...]]:
    """Statistics [N] and the gradients of the hybrid loss: three products.

    The gradients of float16 operands are in fp32: they wait for the loss's own factor.
    """
    kernels, bias = interface.row_kernels_of(options.backend), _kernel_bias(head)
    chunks = _chunks(head, options)
    sums = ChunkGradients(head, needs, options, chunks, kernels.scale_, rounded=False)
    found = []
    for rows, logits in _logits(head, options, chunks):
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


def _chunks(head: Head, options: ChunkOptions) -> Chunks:
    return chunks_of(len(head.hidden), head.weight.shape[0], head.stats_dtype.itemsize, options)


def _logits(
    head: Head, options: ChunkOptions, chunks: Chunks
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Rows and their logits [R, V], which the next chunk overwrites."""
    vocab = head.weight.shape[0]
    buffer = head.hidden.new_empty((chunks.buffer_rows, chunks.pitch), dtype=head.stats_dtype)
    for rows in chunks.rows:
        states, out = head.hidden[rows], buffer[:, :vocab]
        logits_product(states, head.weight, out, same_bits=options.same_bits)
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
