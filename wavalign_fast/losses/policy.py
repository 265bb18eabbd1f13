"""Policy-gradient and KL terms of rollout tokens, from log-probs."""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch

from wavalign_fast.ops.inputs import finite_number
from wavalign_fast.ops.token_math import LINEAR_FROM

Clip = float | tuple[float, float]
ImportanceLevel = Literal["token", "sequence"]


class PolicyTokens(NamedTuple):
    """Per-token terms, each [T]."""

    surrogate: torch.Tensor
    """``s``, to be maximised."""
    kl: torch.Tensor | None
    """``k``, the k3 estimate of KL(policy || reference); ``None`` without a reference."""
    clipped_low: torch.Tensor
    clipped_high: torch.Tensor


def clip_bounds(clip: Clip | None) -> tuple[float, float] | None:
    """``(1 - low, 1 + high)`` from one ε or a pair ``(low, high)``."""
    if clip is None:
        return None
    try:
        low, high = clip if isinstance(clip, tuple | list) else (clip, clip)
        low = finite_number("clip", low, low=0.0, high=1.0)
        high = finite_number("clip", high, low=0.0)
    except ValueError:
        raise ValueError(
            f"clip: got {clip!r}, want ε or (low, high) with 0 <= low <= 1, high >= 0 and finite"
        ) from None
    return 1.0 - low, 1.0 + high


def linear_beyond(
    function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor
) -> torch.Tensor:
    """``function`` (exp or expm1) up to 20 nats, and its tangent from there on.

    Finite and increasing where exp overflows, and the gradient keeps its sign: to clamp ``x``
    would take the gradient away just from the tokens that are furthest off.
    """
    slope = math.exp(LINEAR_FROM)
    # The gradient of clamp alone is 1 at the bound up to torch 2.13 and 0 from 2.14 on; and a NaN
    # must keep it from the token that it is masked in.
    bounded = torch.where(x <= LINEAR_FROM, x, x.detach().clamp(max=LINEAR_FROM))
    return function(bounded) + slope * torch.relu(x - LINEAR_FROM)


def policy_tokens(
    log_ratio: torch.Tensor,
    advantage: torch.Tensor,
    *,
    ref_gap: torch.Tensor | None = None,
    clip: Clip | None = None,
) -> PolicyTokens:
    """``s = ρA``, or ``min(ρA, clip(ρ)A)`` when clipping is on, and ``k = e^(r-ℓ) - (r-ℓ) - 1``.

    ``ρ = e^log_ratio``. Both exponentials are ``linear_beyond`` 20 nats.

    Args:
        log_ratio: ``ℓ - ℓ_old``, of each token or the mean of its sequence.
        advantage: A.
        ref_gap: ``r - ℓ``, log-probs under the reference less those under the policy.

    Returns:
        Terms of the shape of the arguments, [T].
    """
    ratio = linear_beyond(torch.exp, log_ratio)
    surrogate = ratio * advantage
    nothing = torch.zeros_like(ratio, dtype=torch.bool)
    low, high = nothing, nothing
    bounds = clip_bounds(clip)
    if bounds is not None:
        low = (ratio < bounds[0]) & (advantage < 0)
        high = (ratio > bounds[1]) & (advantage > 0)
        # The minimum of the two, with the whole gradient where they are equal.
        clipped = ratio.detach().clamp(*bounds) * advantage
        surrogate = torch.where(low | high, clipped, surrogate)
    # expm1 keeps the digits of a small KL, where e^x - 1 has none.
    kl = None if ref_gap is None else linear_beyond(torch.expm1, ref_gap) - ref_gap
    return PolicyTokens(surrogate, kl, low, high)
