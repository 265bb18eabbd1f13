"""The hybrid loss of a token: its coefficients, and the derivative by its log-prob."""

import math
from typing import NamedTuple

import torch

LINEAR_FROM = 20.0
"""Log-ratio, in nats, above which a ratio continues along its tangent."""


class TokenTable(NamedTuple):
    """What the hybrid loss needs of each row besides its log-prob; each column is [R].

    A coefficient includes the term's weight, its denominator and λ. Where it is 0 the term is 0,
    whatever its other columns hold, NaN included.
    """

    policy_coef: torch.Tensor
    advantage: torch.Tensor
    kl_coef: torch.Tensor
    anchor_coef: torch.Tensor
    old_logp: torch.Tensor | None = None
    """``None``: the policy itself sampled, so ρ = 1."""
    ref_logp: torch.Tensor | None = None
    """``None``: there is no KL term."""


def token_gradient(
    logp: torch.Tensor, table: TokenTable, clip: tuple[float, float] | None
) -> torch.Tensor:
    """``dL/dlogp`` [R] of the hybrid loss, the derivative of ``losses.policy.policy_tokens``.

    Args:
        logp: [R].
        table: the coefficients of the rows.
        clip: the bounds of ρ, ``(1 - low, 1 + high)``; ``None`` does not clip.
    """
    excess = torch.zeros_like(logp) if table.old_logp is None else logp - table.old_logp
    slope = excess.clamp(max=LINEAR_FROM).exp()
    ratio = slope + math.exp(LINEAR_FROM) * torch.relu(excess - LINEAR_FROM)
    surrogate = slope * table.advantage
    if clip is not None:
        clipped = ratio.clamp(*clip) * table.advantage
        surrogate = torch.where(ratio * table.advantage <= clipped, surrogate, 0.0)
    g = torch.where(table.policy_coef > 0, -table.policy_coef * surrogate, 0.0)
    g = g - table.anchor_coef
    if table.ref_logp is not None:
        kl = -torch.expm1((table.ref_logp - logp).clamp(max=LINEAR_FROM))
        g = g + torch.where(table.kl_coef > 0, table.kl_coef * kl, 0.0)
    return g


def may_have_gradient(table: TokenTable) -> torch.Tensor:
    """Which rows [R] may have a ``token_gradient`` other than 0, judged by the coefficients alone.

    A row that clipping sets to 0 still counts: that depends on its log-prob.
    """
    with_gradient = (table.policy_coef > 0) & (table.advantage != 0) | (table.anchor_coef != 0)
    return with_gradient if table.ref_logp is None else with_gradient | (table.kl_coef > 0)
