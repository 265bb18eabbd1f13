"""The hybrid loss over a head in one pass: statistics and gradients from one table of tokens."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from wavalign_fast.ops.chunked.api import gpu_hybrid_step
from wavalign_fast.ops.chunked.compaction import LiveRows, select_live_rows
from wavalign_fast.ops.cpu import cpu_hybrid_step
from wavalign_fast.ops.linear_logprob import LogProb
from wavalign_fast.ops.operands import IGNORE_INDEX, Operands
from wavalign_fast.ops.token_math import TokenTable


class HybridGradients(NamedTuple):
    """Results of each position, each [T] and detached, and the loss's way to its gradients."""

    scores: LogProb
    attach: Callable[[torch.Tensor], torch.Tensor]
    """The same 0-d loss, with the step's gradients behind it; for one backward pass on a GPU."""


def gpu_live_rows(
    operands: Operands, table: TokenTable, *, columns: bool = True
) -> LiveRows | None:
    """What a GPU backend is given of the rows; ``None`` for the others, which take all of them.

    With tables on the CPU it is there, to be copied along with what else the device needs.
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
    """Log-probs of ``operands`` and the gradients of the hybrid loss to its operands.

    The loss itself is the caller's, from the log-probs; ``table`` says what its derivative by each
    of them is (``token_math.token_gradient``), so that nothing has to be differentiated.

    Args:
        operands: of any backend but ``reference``, where the loss differentiates itself.
        table: columns [T].
        live: ``gpu_live_rows`` of both.
        clip: bounds of the ratio, ``(1 - low, 1 + high)``.
    """
    if live is None:
        logp, entropy, lse, attach = cpu_hybrid_step(
            operands, table, clip=clip, ignore_index=IGNORE_INDEX
        )
    else:
        logp, entropy, lse, attach = gpu_hybrid_step(
            operands, live, clip=clip, ignore_index=IGNORE_INDEX
        )
    return HybridGradients(LogProb(logp, entropy, lse), attach)
