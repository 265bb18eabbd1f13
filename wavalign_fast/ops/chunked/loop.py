"""The loop over chunks of rows, for every GPU backend.

Its rows are the compacted live rows. For each chunk it computes the logits by a GEMM with fp32
results, calls a row kernel, then computes the gradients by further GEMMs. A backend provides the
kernels only. Their definition, ``row_ops``, is a backend too, so the loop also runs in float64.

A row's bits do not depend on the batch, the chunk or the budget: see ``products.logits_product``.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from wavalign_fast.ops.chunked import kernels
from wavalign_fast.ops.chunked.chunks import ChunkOptions, Chunks, Head, Needs, chunks_of
from wavalign_fast.ops.chunked.gradients import ChunkGradients, float16_power
from wavalign_fast.ops.chunked.interface import RowChunk, RowGrads, RowKernels, RowStats
from wavalign_fast.ops.chunked.products import logits_product
from wavalign_fast.ops.chunked.softcap import buffers_of, cap_
from wavalign_fast.ops.token_math import TokenTable, token_gradient


def chunked_row_stats(head: Head, options: ChunkOptions) -> RowStats:
    """Statistics of every row, each [N], with the logits of one chunk at a time in memory."""
    backend = kernels.row_kernels_of(options.backend)
    chunks = _chunks(head, options)
    row_chunks = _row_chunks(head, options, chunks, slopes=False)
    return _joined(head, [backend.row_stats(chunk) for _, chunk, _ in row_chunks])


def chunked_row_gradients(
    head: Head, stats: RowStats, grads: RowGrads, needs: Needs, options: ChunkOptions
) -> tuple[torch.Tensor | None, ...]:
    """Gradients to hidden, weight and bias, from recomputed logits."""
    backend = kernels.row_kernels_of(options.backend)
    with_gradient = head._replace(hidden=head.hidden[: options.grad_rows])
    chunks = _chunks(with_gradient, options)
    sums = ChunkGradients(head, needs, options, chunks, backend.scale_)
    for rows, chunk, slope in _row_chunks(with_gradient, options, chunks):
        found = row_gradient(
            backend,
            chunk,
            RowStats(*(value[rows] for value in stats)),
            RowGrads(*(None if grad is None else grad[rows] for grad in grads)),
            head.weight.dtype,
            slope,
        )
        sums.add(rows, *found)
    return sums.finish()


def chunked_hybrid_rows(
    head: Head,
    table: TokenTable,
    clip: tuple[float, float] | None,
    needs: Needs,
    options: ChunkOptions,
) -> tuple[RowStats, tuple[torch.Tensor | None, ...]]:
    """Statistics [N] and the gradients of the hybrid loss, by three GEMMs a chunk.

    The gradients of float16 operands are in fp32, since the factor of a gradient scaler is still to
    come.
    """
    backend = kernels.row_kernels_of(options.backend)
    chunks = _chunks(head, options)
    sums = ChunkGradients(head, needs, options, chunks, backend.scale_, rounded=False)
    found = []
    for rows, chunk, slope in _row_chunks(head, options, chunks):
        columns = TokenTable._make(None if column is None else column[rows] for column in table)
        part, gradient = _hybrid_rows(backend, chunk, columns, clip, head.weight.dtype, slope)
        found.append(part)
        sums.add(rows, *gradient)
    return _joined(head, found), sums.finish()


class RowGradient(NamedTuple):
    """The gradient of a chunk's logits, as ``HeadGradients.add`` takes it."""

    dlogits: torch.Tensor
    """[R, V] in the dtype of the operands, before a soft cap."""
    power: torch.Tensor | None
    """[R], the power of two that each row includes, for float16."""
    capped: torch.Tensor | None
    """[R, V] behind the soft cap, if there is one."""


def _hybrid_rows(
    backend: RowKernels,
    chunk: RowChunk,
    table: TokenTable,
    clip: tuple[float, float] | None,
    out_dtype: torch.dtype,
    slope: torch.Tensor | None,
) -> tuple[RowStats, RowGradient]:
    """A chunk's statistics and its dL/dlogits.

    float16 needs two kernels: its powers of two depend on g, which depends on the log-probs. A soft
    cap has two as well, with its own derivative after them.
    """
    if out_dtype != torch.float16 and slope is None:
        stats, _, dlogits = backend.hybrid_rows_(chunk, table, clip=clip, out_dtype=out_dtype)
        return stats, RowGradient(dlogits, None, None)
    stats = backend.row_stats(chunk)
    dead = chunk.targets == chunk.ignore_index
    g = torch.where(dead, 0.0, token_gradient(stats.logp, table, clip))
    return stats, row_gradient(backend, chunk, stats, RowGrads(logp=g), out_dtype, slope)


def row_gradient(
    backend: RowKernels,
    chunk: RowChunk,
    stats: RowStats,
    grads: RowGrads,
    out_dtype: torch.dtype,
    slope: torch.Tensor | None,
) -> RowGradient:
    """A chunk's dL/dlogits.

    Args:
        slope: [R, V], the derivative of the soft cap; it is overwritten.
    """
    power = None
    if out_dtype == torch.float16:
        power = float16_power(chunk, stats, grads)
        grads = RowGrads(*(None if grad is None else grad * power for grad in grads))
    if slope is None:
        dlogits = backend.row_gradient_(chunk, stats, grads, out_dtype=out_dtype)
        return RowGradient(dlogits, power, None)
    # Rounded once, after both factors.
    capped = backend.row_gradient_(chunk, stats, grads, out_dtype=slope.dtype)
    return RowGradient(slope.mul_(capped).to(out_dtype), power, capped)


def _chunks(head: Head, options: ChunkOptions) -> Chunks:
    item = head.stats_dtype.itemsize * buffers_of(head)
    return chunks_of(len(head.hidden), head.weight.shape[0], item, options)


def _row_chunks(
    head: Head, options: ChunkOptions, chunks: Chunks, *, slopes: bool = True
) -> Iterator[tuple[slice, RowChunk, torch.Tensor | None]]:
    """Each chunk of rows with its logits [R, V], which the next one overwrites.

    With it comes the derivative [R, V] of the soft cap, if there is one and ``slopes`` are wanted.
    """
    vocab, bias = head.weight.shape[0], kernel_bias(head)
    buffer = head.hidden.new_empty((chunks.buffer_rows, chunks.pitch), dtype=head.stats_dtype)
    of_cap = torch.empty_like(buffer) if slopes and head.softcap is not None else None
    for rows in chunks.rows:
        states, out = head.hidden[rows], buffer[:, :vocab]
        logits_product(states, head.weight, out, same_bits=options.same_bits)
        slope = None if of_cap is None else of_cap[: len(states), :vocab]
        chunk = row_chunk(out[: len(states)], head.targets[rows], head, bias, slope)
        yield rows, chunk, slope


def row_chunk(
    logits: torch.Tensor,
    targets: torch.Tensor,
    head: Head,
    bias: torch.Tensor | None,
    slope: torch.Tensor | None,
) -> RowChunk:
    """A product [R, V] as a row kernel takes it, behind the soft cap if the head has one.

    Args:
        bias: ``kernel_bias(head)``.
        slope: [R, V], receives the derivative of the cap.
    """
    if head.softcap is not None:
        cap_(logits, head, bias if head.bias_inside else None, slope)
        bias = None if head.bias_inside else bias
    return RowChunk(logits, targets, bias, 1.0 / head.temperature, head.ignore_index)


def kernel_bias(head: Head) -> torch.Tensor | None:
    """The bias as row kernels take it: in the dtype of the statistics, aligned to 16 bytes."""
    if head.bias is None:
        return None
    bias = head.bias.to(head.stats_dtype).contiguous()
    return bias if bias.data_ptr() % 16 == 0 else bias.clone()


def _joined(head: Head, parts: list[RowStats]) -> RowStats:
    """The statistics of all chunks, each [N]."""
    if len(parts) == 1:
        return parts[0]
    if not parts:
        none = head.hidden.new_empty(0, dtype=head.stats_dtype)
        return RowStats(*(none.clone() for _ in RowStats._fields))
    return RowStats(*map(torch.cat, zip(*parts, strict=True)))
