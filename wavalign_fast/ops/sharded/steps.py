"""Log-probs and steps of the hybrid loss over a sharded head: the exchanges, chunk by chunk.

A chunk holds the same number of rows of each rank. The ranks cut their rows, padded to the height
of the tallest, at the same places, so that each exchange belongs to the same rows.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wavalign_fast.ops.chunked.chunks import PRODUCT_ROWS, ChunkOptions, Head, Needs, pitch_of
from wavalign_fast.ops.chunked.interface import RowGrads, RowStats
from wavalign_fast.ops.chunked.softcap import buffers_of
from wavalign_fast.ops.custom_ops import NO_SECOND_DERIVATIVE
from wavalign_fast.ops.operands import IGNORE_INDEX
from wavalign_fast.ops.options import LossOptions
from wavalign_fast.ops.sharded.exchange import (
    GatheredRows,
    gathered,
    grads_here,
    sum_of_own_rows,
    whole_stats,
)
from wavalign_fast.ops.sharded.head import HeadShard
from wavalign_fast.ops.sharded.slices import CpuSlice, EmptySlice, LoopSlice, Slice
from wavalign_fast.ops.token_math import TokenTable, token_gradient


class ShardedCall(NamedTuple):
    """How a call is computed; all ranks have the same but for the slice."""

    shard: HeadShard
    chunks: ChunkOptions | None
    """Of the chunk loop; ``None``: the C++ kernels compute, on all rows at once."""
    options: LossOptions
    with_top: bool = False

    def slice_of(
        self, head: Head, needs: Needs, *, learning: bool = False, rounded: bool = True
    ) -> Slice:
        """The products with this rank's slice."""
        if len(head.weight) == 0:
            return EmptySlice(head, needs)
        if self.chunks is None:
            return CpuSlice(head, needs, self.options, learning=learning)
        places = self.places(head)
        most = max((place.stop - place.start for place in places), default=0)
        return LoopSlice(
            head,
            needs,
            self.chunks,
            rows=most * self.shard.world,
            single=len(places) == 1,
            rounded=rounded,
        )

    def places(self, head: Head) -> list[slice]:
        """Where each rank's rows are cut: as many rows as the budget holds of the largest slice."""
        height, world = self.shard.height, self.shard.world
        if height == 0:
            return []
        if self.chunks is None:
            return [slice(0, height)]
        item = head.stats_dtype.itemsize * buffers_of(head)
        row_bytes = pitch_of(-(-self.shard.vocab_size // world)) * item
        return chunk_places(height, world, row_bytes, self.chunks.memory_budget)

    def own_rows(self, place: slice) -> slice:
        """This rank's rows among those gathered of a chunk."""
        size = place.stop - place.start
        return slice(self.shard.rank * size, (self.shard.rank + 1) * size)

    def padded(self, rows: Tensor, value: float = 0) -> Tensor:
        """Rows [N, ...] filled up to the height of the tallest rank."""
        missing = self.shard.height - len(rows)
        if missing < 0:
            raise ValueError(
                f"HeadShard.height: got {self.shard.height}, want the largest number of live rows "
                f"of any rank; this rank has {len(rows)}"
            )
        widths = (0, 0) * (rows.dim() - 1) + (0, missing)
        return torch.nn.functional.pad(rows, widths, value=value) if missing else rows


def chunk_places(height: int, world: int, row_bytes: int, memory_budget: int) -> list[slice]:
    """Cuts ``height`` rows of each of ``world`` ranks; ``row_bytes`` of logits belong to a row."""
    most = max(PRODUCT_ROWS, memory_budget // row_bytes) // world
    count = -(-height // max(1, most))
    size = -(-height // count)
    return [slice(first, min(first + size, height)) for first in range(0, height, size)]


def sharded_logprob(head: Head, call: ShardedCall) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-probs, entropies and lse [N] of this rank's rows over the whole vocabulary.

    The fourth is ``top``, bool [N] if ``call.with_top``, else [0].

    Differentiable once. A collective, and another in the backward pass.
    """
    found: tuple[Tensor, Tensor, Tensor, Tensor] = _ShardedLogProb.apply(
        head.hidden, head.weight, head.bias, head, call
    )
    return found


def sharded_hybrid_step(
    head: Head, table: TokenTable, clip: tuple[float, float] | None, needs: Needs, call: ShardedCall
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor | None, ...]]:
    """Log-probs, entropies and lse [N], and the hybrid loss's gradients to the three operands.

    Three products a chunk, as over a whole head. The gradients of float16 operands are in fp32.

    Args:
        head: without autograd.
        table: columns [N].
    """
    own_slice = call.slice_of(head, needs, rounded=False)
    columns = TokenTable._make(None if c is None else call.padded(c) for c in table)
    group = call.shard.group
    found, of_states = [], []
    for place, rows in _gathered_chunks(head, call):
        stats = whole_stats(own_slice.row_stats(rows), rows, call.shard)
        own = call.own_rows(place)
        found.append(RowStats(*(value[own] for value in stats.whole)))
        part = TokenTable._make(None if c is None else c[place] for c in columns)
        g = token_gradient(found[-1].logp, part, clip)
        dead = rows.ids[own] == IGNORE_INDEX
        g = gathered(torch.where(dead, 0.0, g), group)
        states = own_slice.gradient(rows, stats.here, grads_here(RowGrads(logp=g), rows.inside))
        of_states.append(sum_of_own_rows(states, group))
    weight, bias = own_slice.finish()
    keep = head.hidden.dtype == torch.float16
    states = _joined(of_states, head) if keep else _joined(of_states, head).to(head.hidden.dtype)
    return _scores(found, head), (states if needs.hidden else None, weight, bias)


class _ShardedLogProb(torch.autograd.Function):
    """Statistics of this rank's rows; backwards their derivatives are gathered from all ranks."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, head: Head, call: ShardedCall
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        needs = Needs(*ctx.needs_input_grad[:3])
        head = head._replace(hidden=hidden, weight=weight, bias=bias).detached()
        own_slice = call.slice_of(head, needs, learning=any(needs))
        found, chunks, tops = [], [], []
        for place, rows in _gathered_chunks(head, call):
            local = own_slice.row_stats(rows)
            stats = whole_stats(local, rows, call.shard, with_top=call.with_top)
            own = call.own_rows(place)
            found.append(RowStats(*(value[own] for value in stats.whole)))
            if stats.top is not None:
                tops.append(stats.top[own])
            if any(needs):
                chunks.append((place, rows, stats.here))
        # Autograd checks that nobody has changed these since.
        ctx.save_for_backward(hidden, weight, bias)
        ctx.rest = (head, call, needs, own_slice, chunks)
        top = torch.cat(tops) if tops else hidden.new_empty(0, dtype=torch.bool)
        top = top[: len(hidden)]
        ctx.mark_non_differentiable(top)
        return *_scores(found, head), top

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(NO_SECOND_DERIVATIVE)
        assert len(ctx.saved_tensors) == 3
        if ctx.rest is None:
            raise RuntimeError(
                "a second backward pass through one sharded head: its memory went to the first; "
                "compute the log-probs again"
            )
        (head, call, needs, own_slice, chunks), ctx.rest = ctx.rest, None
        group = call.shard.group
        own_grads = call.padded(torch.stack(grads[:3], dim=1))
        of_states = []
        for place, rows, stats in chunks:
            of_rows = RowGrads(*gathered(own_grads[place], group).unbind(1))
            states = own_slice.gradient(rows, stats, grads_here(of_rows, rows.inside))
            of_states.append(sum_of_own_rows(states, group))
        weight, bias = own_slice.finish()
        states = _joined(of_states, head).to(head.hidden.dtype)
        return states if needs.hidden else None, weight, bias, None, None


def _gathered_chunks(head: Head, call: ShardedCall) -> Iterator[tuple[slice, GatheredRows]]:
    """The place in this rank's rows, and the gathered rows, of each chunk."""
    states, targets = call.padded(head.hidden), call.padded(head.targets, IGNORE_INDEX)
    for place in call.places(head):
        yield place, GatheredRows.of(states[place], targets[place], call.shard)


def _scores(found: list[RowStats], head: Head) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs, entropies and lse [N] of the chunks of this rank."""
    if not found:
        none = head.hidden.new_empty(0, dtype=head.stats_dtype)
        return none, none.clone(), none.clone()
    logp, entropy, top, log_sum = (
        torch.cat(parts)[: len(head.hidden)] for parts in zip(*found, strict=True)
    )
    return logp, entropy, top + log_sum


def _joined(of_states: list[Tensor], head: Head) -> Tensor:
    """dH [N, H] of this rank's rows."""
    if not of_states:
        return torch.zeros_like(head.hidden, dtype=head.stats_dtype)
    return torch.cat(of_states)[: len(head.hidden)]
