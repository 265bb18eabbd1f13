"""The definition of ``interface.RowKernels`` in plain torch, for any dtype.

A GEMM computes a chunk of logits [R, V]. A row kernel computes the statistics of each row, its
gradient, or both at once, and writes the gradient over the logits, as an operand of the next GEMM.
Three more functions compact the rows that carry loss, gather and scatter them; one scales a
gradient. What these functions compute in float64 is what every backend has to agree with.
"""

import math

import torch

from wavalign_fast.ops.chunked.interface import RowChunk, RowGrads, RowStats
from wavalign_fast.ops.dtypes import statistics_dtype
from wavalign_fast.ops.token_math import TokenTable, token_gradient


def row_stats(chunk: RowChunk) -> RowStats:
    """Statistics of ``z = logits * scale + bias`` for each row."""
    z, ids, live, bad = _rows(chunk)
    top = z.amax(dim=-1)
    below = torch.where(torch.isneginf(z), -math.inf, z - top.unsqueeze(-1))
    e = below.exp()
    total = e.sum(dim=-1)
    log_sum = total.log()
    weighted = (e * torch.where(torch.isneginf(below), 0.0, below)).sum(dim=-1)
    at_target = z.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    # The bounds make log p <= 0 and entropy >= 0 exact, not only true up to rounding.
    values = RowStats(
        logp=(at_target - top - log_sum).clamp(max=0.0),
        entropy=(log_sum - weighted / total).clamp(min=0.0),
        top=top,
        log_sum=log_sum,
    )
    return RowStats(*(torch.where(live, v.masked_fill(bad, math.nan), 0.0) for v in values))


def row_gradient_(
    chunk: RowChunk, stats: RowStats, grads: RowGrads, *, out_dtype: torch.dtype
) -> torch.Tensor:
    """``dL/dlogits`` [R, V] in ``out_dtype``, written over ``chunk.logits``.

    With g, e, l the derivatives by log-prob, entropy and lse:
    ``dL/dz = (l - g) p + g onehot - e p (log p + entropy)``. The gradient is 0, whatever the logits
    are, in a dead row, in one with a bad target, and in one whose derivatives are all 0.
    """
    z, ids, live, bad = _rows(chunk)
    zero = torch.zeros_like(stats.logp)
    g, e, by_lse = (zero if grad is None else grad for grad in grads)
    logp = z - stats.top.unsqueeze(-1) - stats.log_sum.unsqueeze(-1)
    p = logp.exp()
    entropy_term = torch.where(p > 0, p * (logp + stats.entropy.unsqueeze(-1)), 0.0)
    dz = (by_lse - g).unsqueeze(-1) * p - e.unsqueeze(-1) * entropy_term
    # At the target, (l - g) p + g without the cancellation where p is near 1.
    p_target = stats.logp.exp()
    own = torch.where(p_target > 0, p_target * (stats.logp + stats.entropy), 0.0)
    onehot = by_lse * p_target - g * torch.expm1(stats.logp) - e * own
    dz = dz.scatter(-1, ids.unsqueeze(-1), onehot.unsqueeze(-1))
    active = live & ~bad & ((g != 0) | (e != 0) | (by_lse != 0))
    dz = torch.where(active.unsqueeze(-1), dz * chunk.scale, 0.0)
    return operand_view(chunk.logits, out_dtype).copy_(dz)


def hybrid_rows_(
    chunk: RowChunk,
    table: TokenTable,
    *,
    clip: tuple[float, float] | None,
    out_dtype: torch.dtype,
) -> tuple[RowStats, torch.Tensor, torch.Tensor]:
    """Statistics, ``g = dL/dlogp`` [R] of the hybrid loss, and ``dL/dlogits`` in one call."""
    stats = row_stats(chunk)
    dead = chunk.targets == chunk.ignore_index
    g = torch.where(dead, 0.0, token_gradient(stats.logp, table, clip))
    return stats, g, row_gradient_(chunk, stats, RowGrads(logp=g), out_dtype=out_dtype)


def compact_rows(live: torch.Tensor, *, capacity: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The indices [capacity] at which ``live`` [T] is true, ascending, and their number [1].

    -1 fills up the indices. If there are more than ``capacity``, the first ones are listed and the
    number counts all of them.
    """
    place = torch.where(live, live.cumsum(0) - 1, capacity).clamp(max=capacity)
    index = live.new_full((capacity + 1,), -1, dtype=torch.int64)
    index[place] = torch.arange(len(live), device=live.device)
    return index[:capacity], live.sum(dtype=torch.int64).reshape(1)


def gather_rows(source: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Rows [N, H] of ``source`` [T, H]; zeros where the index [N] is -1."""
    if source.shape[0] == 0:
        return source.new_zeros((len(index), source.shape[1]))
    rows = source.index_select(0, index.clamp(min=0))
    return torch.where((index < 0).unsqueeze(1), 0, rows)


def scatter_rows_(rows: torch.Tensor, index: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Writes rows [N, H] into ``target`` [T, H], in its dtype, except where the index is -1."""
    given = index >= 0
    target[index[given]] = rows[given].to(target.dtype)
    return target


def scale_(gradient: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """``gradient *= factor``, 0-d, rounded once: the factor in bf16 would be off by 0.4 %."""
    wide = torch.promote_types(gradient.dtype, factor.dtype)
    if wide == gradient.dtype:
        return gradient.mul_(factor)
    return gradient.copy_(gradient.to(wide) * factor)


def operand_view(logits: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The memory of ``logits`` as [R, V] of a dtype no wider; each row starts where it did."""
    wide, narrow = logits.element_size(), dtype.itemsize
    pitch = logits.stride(0) if logits.shape[0] > 1 else logits.shape[1]
    if logits.stride(1) != 1 or narrow > wide:
        raise ValueError(
            f"logits: got {logits.dtype} of strides {logits.stride()}, want contiguous rows of a "
            f"type no narrower than {dtype}"
        )
    # Memory may end with the last row's V elements: its view has as many, and no more bytes.
    size = (logits.shape[0], pitch * wide // narrow)
    flat = logits.as_strided((size[0] * pitch - pitch + logits.shape[1],), (1,)).view(dtype)
    return flat.as_strided((size[0], logits.shape[1]), (size[1], 1))


def _rows(
    chunk: RowChunk,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """z, ids that are safe to gather, which rows are live, and which have a bad id."""
    logits, targets, bias, scale, ignore_index = chunk
    compute = statistics_dtype(logits.dtype)
    z = logits.to(compute) * scale
    if bias is not None:
        z = z + bias.to(compute)
    live = targets != ignore_index
    bad = live & ((targets < 0) | (targets >= logits.shape[1]))
    return z, torch.where(live & ~bad, targets, 0), live, bad
