"""What the ranks of a sharded head exchange, and the statistics of the whole vocabulary from it."""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from wavalign_fast.ops.chunked.interface import RowGrads, RowStats, is_top
from wavalign_fast.ops.operands import IGNORE_INDEX
from wavalign_fast.ops.sharded.head import HeadShard


def gathered(local: Tensor, group: Any) -> Tensor:
    """``local`` [M, ...] of each rank as [P·M, ...], in order of rank."""
    world = dist.get_world_size(group)
    whole = local.new_empty((world * local.shape[0], *local.shape[1:]))
    # torch 2.13 renamed this function and the next, and warns of the old names.
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    gather(whole, local.contiguous(), group=group)
    return whole


def sum_of_own_rows(parts: Tensor, group: Any) -> Tensor:
    """The sum over the ranks of ``parts`` [P·M, ...], of which each rank gets its M rows."""
    own = parts.new_empty((parts.shape[0] // dist.get_world_size(group), *parts.shape[1:]))
    reduce = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    reduce(own, parts.contiguous(), group=group)
    return own


class GatheredRows(NamedTuple):
    """Rows of all ranks, as the slice of this rank sees them."""

    states: Tensor
    """[R, H]"""
    ids: Tensor
    """[R] int64, ids in the slice. Where the target is another rank's it is the slice's first id;
    ``IGNORE_INDEX`` marks a dead row, -1 a target outside the whole vocabulary."""
    inside: Tensor
    """[R] bool, whether the target is in the slice."""

    @classmethod
    def of(cls, states: Tensor, targets: Tensor, shard: HeadShard) -> "GatheredRows":
        """Gathers states [M, H] and targets [M] of each rank; the same M on all of them."""
        states, targets = gathered(states, shard.group), gathered(targets, shard.group)
        live = targets != IGNORE_INDEX
        known = (targets >= 0) & (targets < shard.vocab_size)
        inside = (targets >= shard.start) & (targets < shard.start + len(shard.weight))
        ids = torch.where(inside, targets - shard.start, torch.where(known, 0, -1))
        return cls(states, torch.where(live, ids, IGNORE_INDEX), inside)


class WholeStats(NamedTuple):
    """Statistics of R rows over the whole vocabulary."""

    whole: RowStats
    """The same bits on all ranks."""
    here: RowStats
    """With the log-prob of the row's id in this slice in place of the target's. The softmax is that
    of the whole vocabulary, so a row kernel makes the slice's part of the whole gradient of it."""
    top: Tensor | None
    """[R] bool, whether the target is the most likely id; if it was asked for."""


def whole_stats(
    local: RowStats, rows: GatheredRows, shard: HeadShard, *, with_top: bool = False
) -> WholeStats:
    """The statistics over all slices, from those of each.

    With ``lse_r`` and ``H_r`` of slice r, ``lse = logsumexp_r lse_r`` and ``w_r = exp(lse_r -
    lse)``: the log-prob is the owner's plus ``log w_r``, the entropy ``Σ_r w_r (H_r - log w_r)``.

    Every rank gathers the numbers of all and adds them up in the same order. An all-reduce would
    not promise the same bits on all ranks. lse stays in two parts, as in ``RowStats``.
    """
    dtype, group = local.logp.dtype, shard.group
    logp = torch.where(rows.inside, local.logp, -torch.inf)
    columns = torch.stack([logp, local.entropy, local.top, local.log_sum])
    found = gathered(columns.unsqueeze(0), group).to(torch.float64)  # [P, 4, R]
    logp, entropy, top, log_sum = found.unbind(1)
    banned = torch.isneginf(top)  # a slice without an id that is possible; its other values are NaN
    peak = top.amax(0)
    relative = torch.where(banned, -torch.inf, top - peak + log_sum)
    total = relative.logsumexp(0)
    log_share = relative - total
    share = log_share.exp()
    live = rows.ids != IGNORE_INDEX
    own_logp = (torch.where(banned, -torch.inf, logp) + log_share).amax(0).clamp(max=0.0)
    mixed = torch.where(share == 0, 0.0, share * (entropy - log_share)).sum(0).clamp(min=0.0)
    values = (own_logp, mixed, peak, total)
    whole = RowStats(*(torch.where(live, value, 0.0).to(dtype) for value in values))
    rank = shard.rank
    of_id = torch.where(banned[rank], -torch.inf, local.logp.to(torch.float64) + log_share[rank])
    of_id = torch.where(rows.inside, whole.logp, of_id.to(dtype))
    found_top = None
    if with_top:
        # Equal bits alone would do but for the rounding of lse, which is added and taken away.
        at_peak = (is_top(logp, log_sum) & (top == peak)).any(0)
        found_top = live & (at_peak | is_top(whole.logp, whole.log_sum))
    return WholeStats(whole, whole._replace(logp=torch.where(live, of_id, 0.0)), found_top)


def grads_here(grads: RowGrads, inside: Tensor) -> RowGrads:
    """Derivatives by a row's whole results, as the row kernel of one slice takes them.

    With g and l by log-prob and lse, ``dL/dz = (l - g) p + g onehot``. A slice without the target
    has no onehot: there its derivative by lse is ``l - g``.
    """
    assert grads.logp is not None
    g = grads.logp
    by_lse = torch.zeros_like(g) if grads.lse is None else grads.lse
    return RowGrads(
        logp=torch.where(inside, g, 0.0),
        entropy=grads.entropy,
        lse=torch.where(inside, by_lse, by_lse - g),
    )
