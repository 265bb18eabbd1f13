"""Policy-gradient and KL terms of rollout tokens, from log-probs."""

from typing import NamedTuple

import torch

Clip = float | tuple[float, float]


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
    low, high = clip if isinstance(clip, tuple | list) else (clip, clip)
    if not (0 <= low <= 1 and high >= 0):
        raise ValueError(f"clip: got {clip!r}, want ε or (low, high) with 0 <= low <= 1, high >= 0")
    return 1.0 - low, 1.0 + high


def policy_tokens(
    logp: torch.Tensor,
    advantage: torch.Tensor,
    *,
    old_logp: torch.Tensor | None = None,
    ref_logp: torch.Tensor | None = None,
    clip: Clip | None = None,
) -> PolicyTokens:
    """``s = ρA``, or ``min(ρA, clip(ρ)A)`` when clipping is on, and ``k = e^(r-ℓ) - (r-ℓ) - 1``.

    ``ρ = exp(logp - old_logp)``; without ``old_logp`` the policy itself, so ρ is exactly 1 and
    only carries the gradient. All arguments and results are [T].
    """
    old = logp.detach() if old_logp is None else old_logp.to(logp)
    ratio = torch.exp(logp - old)
    surrogate = ratio * advantage
    nothing = torch.zeros_like(ratio, dtype=torch.bool)
    low, high = nothing, nothing
    bounds = clip_bounds(clip)
    if bounds is not None:
        clipped = ratio.clamp(*bounds) * advantage
        low = (ratio < bounds[0]) & (advantage < 0)
        high = (ratio > bounds[1]) & (advantage > 0)
        surrogate = torch.minimum(surrogate, clipped)
    kl = None
    if ref_logp is not None:
        gap = ref_logp.to(logp) - logp
        # expm1 keeps the digits of a small KL, where e^x - 1 has none.
        kl = torch.expm1(gap) - gap
    return PolicyTokens(surrogate, kl, low, high)
