"""The hybrid loss over a head in one pass: statistics and gradients from one table of tokens."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from wavalign_fast.ops import cpu, gpu
from wavalign_fast.ops.calls import IGNORE_INDEX, Call
from wavalign_fast.ops.linear_logprob import LogProb
from wavalign_fast.ops.row_kernels import TokenTable


class HybridStep(NamedTuple):
    """Results of each position, each [T] and detached, and the loss's way to its gradients."""

    scores: LogProb
    attach: Callable[[torch.Tensor], torch.Tensor]
    """The same 0-d loss, with the step's gradients behind it; for one backward pass on a GPU."""


def hybrid_step(call: Call, table: TokenTable, *, clip: tuple[float, float] | None) -> HybridStep:
    """Log-probs of ``call`` and the gradients of the hybrid loss to its operands.

    The loss itself is the caller's, from the log-probs; ``table`` says what its derivative by each
    of them is (``row_kernels.token_gradient``), so that nothing has to be differentiated.

    Args:
        call: of any backend but ``reference``, where the loss differentiates itself.
        table: columns [T], on the device of the rows.
        clip: bounds of the ratio, ``(1 - low, 1 + high)``.
    """
    operands = (call.rows, call.weight, call.targets, table)
    if call.backend == "cpu":
        logp, entropy, lse, attach = cpu.hybrid_step(
            *operands, bias=call.bias, clip=clip, ignore_index=IGNORE_INDEX, options=call.options
        )
    else:
        logp, entropy, lse, attach = gpu.hybrid_step(
            *operands,
            bias=call.bias,
            clip=clip,
            ignore_index=IGNORE_INDEX,
            options=call.options,
            backend=call.backend,
        )
    return HybridStep(LogProb(logp, entropy, lse), attach)
