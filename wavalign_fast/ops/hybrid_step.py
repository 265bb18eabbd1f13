"""A step of the hybrid loss over a head: log-probs and gradients in one pass."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from wavalign_fast.ops.chunked.api import gpu_hybrid_step
from wavalign_fast.ops.chunked.compaction import LiveRows, select_live_rows
from wavalign_fast.ops.cpu import attached_derivative
from wavalign_fast.ops.linear_logprob import LogProb, compute_logprobs
from wavalign_fast.ops.operands import IGNORE_INDEX, Operands
from wavalign_fast.ops.sharded.api import sharded_step
from wavalign_fast.ops.token_math import TokenTable


class HybridGradients(NamedTuple):
    """Log-probs of a step, and its gradients, which wait to be attached to the loss."""

    scores: LogProb
    """Each [T], detached."""
    attach: Callable[[torch.Tensor], torch.Tensor]
    """Returns the same 0-d loss with the step's gradients attached. On a GPU it has one backward
    pass only."""


def gpu_live_rows(
    operands: Operands, table: TokenTable, *, columns: bool = True
) -> LiveRows | None:
    """The live rows for a GPU backend; ``None`` for the others, which take all rows.

    They stay on the CPU if the tables are there, so that one copy can bring everything that the
    device needs.
    """
    if operands.backend in ("reference", "cpu"):
        return None
    return select_live_rows(operands, IGNORE_INDEX, table, columns=columns)


def hybrid_step(
    operands: Operands,
    table: TokenTable,
    live: LiveRows | None,
    *,
    clip: tuple[float, float] | None,
) -> HybridGradients:
    """Log-probs of ``operands`` and the gradients of the hybrid loss to them.

    The caller computes the loss itself, from the log-probs. ``table`` determines its derivative by
    each log-prob (``token_math.token_gradient``), so autograd is not needed.

    Args:
        operands: of any backend but ``reference``, which differentiates the loss by autograd.
        table: columns [T].
        live: ``gpu_live_rows(operands, table)``.
        clip: bounds of the ratio, ``(1 - low, 1 + high)``; ``None`` does not clip.
    """
    if live is None:
        scores = compute_logprobs(operands)
        logp, entropy, lse = scores.logp, scores.entropy, scores.lse
        assert entropy is not None
        attach = attached_derivative(logp, operands.targets, table, clip=clip)
        return HybridGradients(LogProb(logp.detach(), entropy.detach(), lse.detach()), attach)
    step = gpu_hybrid_step if operands.shard is None else sharded_step
    logp, entropy, lse, attach = step(operands, live, clip=clip)
    return HybridGradients(LogProb(logp, entropy, lse), attach)
