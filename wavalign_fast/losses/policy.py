"""The policy-gradient and KL terms of rollout tokens, from their log-probs."""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch

from wavalign_fast.ops.inputs import finite_number
from wavalign_fast.ops.token_math import LINEAR_FROM

Clip = float | tuple[float, float]
ImportanceLevel = Literal["token", "sequence"]


class PolicyTokens(NamedTuple):
    """The terms of each token, [T]."""

    surrogate: torch.Tensor
    """s, to be maximised."""
    kl: torch.Tensor | None
    """k, the k3 estimate of KL(policy || reference); ``None`` without a reference."""
    clipped_low: torch.Tensor
    """bool, whether ρ is below the lower bound and A < 0."""
    clipped_high: torch.Tensor
    """bool, whether ρ is above the upper bound and A > 0."""


def clip_bounds(clip: Clip | None) -> tuple[float, float] | None:
    """The bounds ``(1 - low, 1 + high)`` of ρ, from one ε or a pair ``(low, high)``."""
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
    """``function`` (exp or expm1) up to 20 nats, and its tangent at 20 beyond.

    The result is finite where exp overflows, and its gradient keeps its sign. Clamping ``x``
    instead would leave the tokens that are furthest off without a gradient.
    """
    slope = math.exp(LINEAR_FROM)
    # At the bound the gradient of clamp alone is 1 up to torch 2.13 and 0 from 2.14 on. `where`
    # also passes no gradient to a token that is NaN and masked later.
    bounded = torch.where(x <= LINEAR_FROM, x, x.detach().clamp(max=LINEAR_FROM))
    return function(bounded) + slope * torch.relu(x - LINEAR_FROM)


def policy_tokens(
    log_ratio: torch.Tensor,
    advantage: torch.Tensor,
    *,
    ref_gap: torch.Tensor | None = None,
    clip: Clip | None = None,
) -> PolicyTokens:
    """``s = ρA``, clipped ``s = min(ρA, clip(ρ)A)``, and ``k = e^(r-ℓ) - (r-ℓ) - 1``.

    ``ρ = e^log_ratio``. Beyond 20 nats both exponentials go on as their tangents
    (``linear_beyond``).

    Args:
        log_ratio: [T] floats, ``ℓ - ℓ_old`` of each token, or its mean over the token's sequence.
        advantage: [T] floats, A.
        ref_gap: [T] floats, ``r - ℓ``: the log-prob under the reference minus that of the policy.
        clip: ε or (low, high); ``None`` does not clip.
    """
    ratio = linear_beyond(torch.exp, log_ratio)
    surrogate = ratio * advantage
    nothing = torch.zeros_like(ratio, dtype=torch.bool)
    low, high = nothing, nothing
    bounds = clip_bounds(clip)
    if bounds is not None:
        low = (ratio < bounds[0]) & (advantage < 0)
        high = (ratio > bounds[1]) & (advantage > 0)
        # The minimum of the two; where they are equal, the gradient is that of ρA.
        clipped = ratio.detach().clamp(*bounds) * advantage
        surrogate = torch.where(low | high, clipped, surrogate)
    # expm1 keeps the digits of a small KL, where e^x - 1 has none.
    kl = None if ref_gap is None else linear_beyond(torch.expm1, ref_gap) - ref_gap
    return PolicyTokens(surrogate, kl, low, high)
