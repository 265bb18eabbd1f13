"""The soft cap of a chunk of logits, for every backend that has row kernels.

The cap comes between the GEMM and the row kernel, by torch's own element-wise kernels, so the row
kernels are the same with and without it. It costs a second buffer of logits, which holds the
derivative of the cap while the row kernel overwrites the logits with theirs.
"""

import torch

from wavalign_fast.ops.chunked.chunks import Head


def buffers_of(head: Head) -> int:
    """How many buffers of logits a chunk has: the logits, and with a cap its derivative, and the
    gradient as an operand of the next GEMM."""
    return 1 if head.softcap is None else 3


def cap_(
    logits: torch.Tensor, head: Head, bias: torch.Tensor | None, slope: torch.Tensor | None
) -> None:
    """``logits = softcap tanh((logits + bias) / softcap)`` [R, V], in place.

    Args:
        bias: the head's, where it is inside the cap.
        slope: [R, V], receives the derivative, ``1 - tanh²``.
    """
    assert head.softcap is not None
    if bias is not None:
        logits.add_(bias)
    logits.div_(head.softcap).tanh_()
    if slope is not None:
        torch.mul(logits, logits, out=slope)
        slope.neg_().add_(1.0)
    logits.mul_(head.softcap)
