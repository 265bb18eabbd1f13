"""What each token of the hybrid loss contributes: its coefficients, and dL/dlogp of them."""

import math
from typing import NamedTuple

import torch

LINEAR_FROM = 20.0
"""Nats from which ratios grow along their tangent."""


class TokenTable(NamedTuple):
    """What the hybrid loss knows of each row before its log-prob, each [R].

    Coefficients hold weights, denominators and λ. A term whose coefficient is 0 is 0 whatever
    stands in its other columns.
    """

    policy_coef: torch.Tensor
    advantage: torch.Tensor
    kl_coef: torch.Tensor
    anchor_coef: torch.Tensor
    old_logp: torch.Tensor | None = None
    """``None``: the policy itself, ρ = 1."""
    ref_logp: torch.Tensor | None = None
    """``None``: no KL."""


def token_gradient(
    logp: torch.Tensor, table: TokenTable, clip: tuple[float, float] | None
) -> torch.Tensor:
    """``dL/dlogp`` of each token of the hybrid loss, from the derivatives of ``policy_tokens``.

    Args:
        logp: [R].
        table: the step's coefficients.
        clip: the bounds of ρ, ``(1 - low, 1 + high)``; ``None`` is off.
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
    """Which rows [R] have a ``token_gradient`` that is not 0 by their coefficients alone.

    What clipping takes away is known with the log-prob only.
    """
    with_gradient = (table.policy_coef > 0) & (table.advantage != 0) | (table.anchor_coef != 0)
    return with_gradient if table.ref_logp is None else with_gradient | (table.kl_coef > 0)
