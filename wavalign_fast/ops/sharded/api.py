"""The public functions over a sharded head, on every backend."""

import torch
from torch import Tensor

from wavalign_fast.ops.chunked.api import Attach, attaching, chunk_options, needs_of
from wavalign_fast.ops.chunked.chunks import Head, head_of
from wavalign_fast.ops.chunked.compaction import LiveRows, gather_live_rows
from wavalign_fast.ops.operands import IGNORE_INDEX, Operands
from wavalign_fast.ops.sharded.steps import ShardedCall, sharded_hybrid_step, sharded_logprob


def sharded_logprobs(
    operands: Operands, live: LiveRows, ignore_index: int, *, with_top: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """``(logp, entropy, lse, top)`` of the rows of ``operands``, each [T]; see ``gpu_logprob``."""
    head = _live_head(operands, live, ignore_index)
    call = _call(operands, live)._replace(with_top=with_top)
    *scores, top = sharded_logprob(head, call)
    return live.scatter_scores(scores, top if with_top else None)


def sharded_step(
    operands: Operands, live: LiveRows, *, clip: tuple[float, float] | None
) -> tuple[Tensor, Tensor, Tensor, Attach]:
    """``(logp, entropy, lse)``, each [T], and a function that attaches the gradients to the loss.

    By the chunk loop of a GPU backend; see ``gpu_hybrid_step``.
    """
    assert live.table is not None
    head = _live_head(operands, live, IGNORE_INDEX)
    needs = needs_of(head)
    with torch.no_grad():
        scores, gradients = sharded_hybrid_step(
            head.detached(), live.table, clip, needs, _call(operands, live)
        )
    logp, entropy, lse = live.scatter(scores)
    return logp, entropy, lse, attaching(head, gradients, needs, operands.backend)


def _live_head(operands: Operands, live: LiveRows, ignore_index: int) -> Head:
    if operands.backend in ("cpu", "reference"):
        states = operands.rows.index_select(0, live.index)
    else:
        states = gather_live_rows(operands.rows, live.index, operands.backend)
    targets = live.targets
    if ignore_index != IGNORE_INDEX:
        targets = targets.masked_fill(targets == IGNORE_INDEX, -1)
        targets = targets.masked_fill(targets == ignore_index, IGNORE_INDEX)
    return head_of(operands, states, targets, IGNORE_INDEX)


def _call(operands: Operands, live: LiveRows) -> ShardedCall:
    assert operands.shard is not None
    chunks = None
    if operands.backend != "cpu":
        chunks = chunk_options(operands, live)
        if operands.backend == "reference":
            chunks = chunks._replace(backend="definition")
    return ShardedCall(operands.shard, chunks, operands.options)
