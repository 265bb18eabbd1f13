"""What the torch.library ops of every backend have in common."""

from collections.abc import Sequence

import torch

NO_SECOND_DERIVATIVE = (
    "the fused losses have no second derivative on this backend; "
    "options=LossOptions(backend='reference') has one"
)


def fake_gradients(
    operands: Sequence[torch.Tensor | None], needs: Sequence[bool]
) -> tuple[torch.Tensor, ...]:
    """Of the shapes that a backward op returns; the ones not needed are empty."""
    like = operands[0]
    assert like is not None
    return tuple(
        torch.empty_like(t) if need and t is not None else like.new_empty(0)
        for t, need in zip(operands, needs, strict=True)
    )
