"""What the torch.library ops of every backend have in common."""

from collections.abc import Sequence
from typing import Any

import torch

NO_SECOND_DERIVATIVE = (
    "the fused losses have no second derivative on this backend; "
    "options=LossOptions(backend='reference') has one"
)


def fake_gradients(
    operands: Sequence[torch.Tensor | None], needs: Sequence[bool]
) -> tuple[torch.Tensor, ...]:
    """Empty tensors of the shapes that a backward op returns: [0] for a gradient not needed."""
    like = operands[0]
    assert like is not None
    return tuple(
        torch.empty_like(t) if need and t is not None else like.new_empty(0)
        for t, need in zip(operands, needs, strict=True)
    )


def refuse_second_derivative(ctx: Any, *grads: Any) -> None:
    """The backward pass of an op whose results have no derivative of their own."""
    raise RuntimeError(NO_SECOND_DERIVATIVE)


def no_context(ctx: Any, inputs: Any, output: Any) -> None:
    """Saves nothing for ``refuse_second_derivative``."""
