"""The public functions over a sharded head, on every backend."""

from collections.abc import Callable

import torch
from torch import Tensor

from wavalign_fast.ops.chunked import autograd
from wavalign_fast.ops.chunked.api import chunk_options
from wavalign_fast.ops.chunked.chunks import Head, Needs
from wavalign_fast.ops.chunked.compaction import LiveRows, gather_live_rows
from wavalign_fast.ops.operands import IGNORE_INDEX, Operands, wants_grad
from wavalign_fast.ops.sharded.steps import ShardedCall, sharded_hybrid_step, sharded_logprob

Attach = Callable[[Tensor], Tensor]


def sharded_logprobs(
    operands: Operands, live: LiveRows, temperature: float, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor]:
    """``(logp, entropy, lse)`` of the rows of ``operands``, each [T]; see ``gpu_logprob``."""
    head = _live_head(operands, live, temperature, ignore_index)
    logp, entropy, lse = live.scatter(sharded_logprob(head, _call(operands, live)))
    return logp, entropy, lse


def sharded_step(
    operands: Operands, live: LiveRows, *, clip: tuple[float, float] | None
) -> tuple[Tensor, Tensor, Tensor, Attach]:
    """``(logp, entropy, lse)``, each [T], and a function that attaches the gradients to the loss.

    By the chunk loop of a GPU backend; see ``gpu_hybrid_step``.
    """
    assert live.table is not None
    head = _live_head(operands, live, 1.0, IGNORE_INDEX)
    leaves = (head.hidden, head.weight, head.bias)
    needs = Needs(*(wants_grad(leaf) for leaf in leaves))
    with torch.no_grad():
        constant = head._replace(
            hidden=head.hidden.detach(),
            weight=head.weight.detach(),
            bias=None if head.bias is None else head.bias.detach(),
        )
        scores, gradients = sharded_hybrid_step(
            constant, live.table, clip, needs, _call(operands, live)
        )

    def attach(loss: Tensor) -> Tensor:
        wanted = [t for t, need in zip(leaves, needs, strict=True) if need and t is not None]
        found = [g for g in gradients if g is not None]
        return autograd.with_gradients(loss.detach(), wanted, found, operands.backend)

    logp, entropy, lse = live.scatter(scores)
    return logp, entropy, lse, attach


def _live_head(operands: Operands, live: LiveRows, temperature: float, ignore_index: int) -> Head:
    if operands.backend in ("cpu", "reference"):
        states = operands.rows.index_select(0, live.index)
    else:
        states = gather_live_rows(operands.rows, live.index, operands.backend)
    targets = live.targets
    if ignore_index != IGNORE_INDEX:
        targets = targets.masked_fill(targets == IGNORE_INDEX, -1)
        targets = targets.masked_fill(targets == ignore_index, IGNORE_INDEX)
    return Head(states, operands.weight, targets, operands.bias, temperature, IGNORE_INDEX)


def _call(operands: Operands, live: LiveRows) -> ShardedCall:
    assert operands.shard is not None
    chunks = None
    if operands.backend != "cpu":
        chunks = chunk_options(operands, live)
        if operands.backend == "reference":
            chunks = chunks._replace(backend="definition")
    return ShardedCall(operands.shard, chunks, operands.options)
