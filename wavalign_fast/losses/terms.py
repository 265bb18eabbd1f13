"""What each position counts in the terms of the objective, and in its derivative."""

from dataclasses import dataclass

import torch

from wavalign_fast.losses.advantage import Std, group_advantages
from wavalign_fast.losses.batch import HybridBatch
from wavalign_fast.losses.checks import check_finite
from wavalign_fast.losses.metrics import StepMetrics
from wavalign_fast.losses.normalisers import Normalisation, Normalisers, normalised
from wavalign_fast.losses.policy import ImportanceLevel, PolicyTokens
from wavalign_fast.losses.segments import at_positions, mean_weights, segment_means, weighted_sum
from wavalign_fast.losses.weights import KLScope, TokenWeights
from wavalign_fast.ops import LossOptions
from wavalign_fast.ops.token_math import TokenTable
from wavalign_fast.ops.transfer import copied_together


@dataclass(frozen=True, kw_only=True, eq=False)
class TermWeights:
    """Weights [T] of the positions in each term; a term is the weighted sum of its tokens."""

    policy: torch.Tensor
    anchor: torch.Tensor
    kl: torch.Tensor
    """β in it."""
    own_kl: bool
    """Whether the KL is a term of its own and not a part of the policy term."""

    @classmethod
    def of(
        cls,
        batch: HybridBatch,
        weights: TokenWeights,
        by: Normalisers,
        *,
        kl_scope: KLScope,
        normalisation: Normalisation,
    ) -> "TermWeights":
        def per_position(
            weights: torch.Tensor, row: torch.Tensor, count: int, by: torch.Tensor | float
        ) -> torch.Tensor:
            in_row = weights if normalisation == "token" else mean_weights(weights, row, count)
            return normalised(in_row, by)

        rollouts = batch.rewards.numel()
        policy = per_position(weights.policy, batch.policy_row, rollouts, by.policy)
        own_kl = kl_scope == "completion"
        in_kl = policy
        if own_kl:
            completion = weights.completion.to(weights.policy)
            in_kl = per_position(completion, batch.policy_row, rollouts, by.kl)
        return cls(
            policy=policy,
            anchor=per_position(weights.anchor, batch.anchor_row, batch.anchor_rows, by.anchor),
            kl=weights.beta * in_kl,
            own_kl=own_kl,
        )

    def losses(
        self, tokens: PolicyTokens, logp: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Policy term, anchor, and the KL where it is not a part of the policy term; 0-d each."""
        policy = weighted_sum(-tokens.surrogate, self.policy)
        anchor = weighted_sum(-logp, self.anchor)
        none = torch.zeros_like(policy)
        if tokens.kl is None:
            return policy, anchor, none
        kl = weighted_sum(tokens.kl, self.kl)
        return (policy, anchor, kl) if self.own_kl else (policy + kl, anchor, none)


@dataclass(frozen=True, kw_only=True, eq=False)
class Rollouts:
    """Which rollout each policy token belongs to, for ratios of whole rollouts."""

    row: torch.Tensor
    """[T], -1 is none."""
    weights: torch.Tensor
    """[T], in the rollout's mean."""
    count: int

    def means(self, values: torch.Tensor) -> torch.Tensor:
        """The weighted mean over its rollout, at each position [T]."""
        return at_positions(segment_means(values, self.weights, self.row, self.count), self.row)


@dataclass(frozen=True, kw_only=True, eq=False)
class StepTerms:
    """Everything of a step but its log-probs, on one device."""

    rl_weight: torch.Tensor
    """λ, 0-d."""
    weights: TermWeights
    advantage: torch.Tensor
    """A of each position's rollout, [T] float64."""
    old_logp: torch.Tensor | None
    """[T] float64, 0 but at policy tokens: what stands elsewhere must not reach the loss, NaN least
    of all."""
    ref_logp: torch.Tensor | None
    """[T] float64, likewise; also at tokens without a β, for the metrics report them."""
    rollouts: Rollouts | None
    """Of ratios of whole rollouts."""
    metrics: StepMetrics

    @classmethod
    def of(
        cls,
        batch: HybridBatch,
        weights: TokenWeights,
        rl_weight: torch.Tensor,
        normalisers: Normalisers | None,
        *,
        kl_scope: KLScope,
        normalisation: Normalisation,
        std: Std,
        level: ImportanceLevel,
        clips: bool,
        options: LossOptions | None,
    ) -> "StepTerms":
        """The terms where the batch is, on the CPU if all of it is there; where a table, λ or a
        normaliser is on a device, they are there, for to read it from the host would be to wait."""
        counts = () if normalisers is None else vars(normalisers).values()
        given = (*vars(batch).values(), rl_weight, *counts)
        for device in {t.device for t in given if isinstance(t, torch.Tensor)}:
            if device.type != "cpu":
                batch, weights, rl_weight, normalisers = copied_together(
                    device, batch, weights, rl_weight, normalisers
                )
        by = normalisers or Normalisers.of(batch, weights, normalisation)
        of_rollouts = group_advantages(batch.rewards, std=std, options=options)
        advantage = at_positions(of_rollouts.to(torch.float64).reshape(-1), batch.policy_row)
        rollouts = None
        if level == "sequence":
            rollouts = Rollouts(
                row=batch.policy_row, weights=weights.policy, count=batch.rewards.numel()
            )
        return cls(
            rl_weight=rl_weight,
            weights=TermWeights.of(
                batch, weights, by, kl_scope=kl_scope, normalisation=normalisation
            ),
            advantage=advantage,
            old_logp=_old_logp(batch, weights),
            ref_logp=_ref_logp(batch, weights, kl_scope),
            rollouts=rollouts,
            metrics=StepMetrics.of(batch, weights, advantage, std=std, level=level, clips=clips),
        )

    def table(self) -> TokenTable:
        """What the kernels make each position's gradient of: coefficients with λ in them."""
        weights, mix = self.weights, self.rl_weight.to(self.weights.policy.dtype)
        return TokenTable(
            policy_coef=mix * weights.policy,
            advantage=self.advantage,
            kl_coef=weights.kl if weights.own_kl else mix * weights.kl,
            anchor_coef=(1.0 - mix) * weights.anchor,
            old_logp=self.old_logp,
            ref_logp=self.ref_logp,
        )

    def log_ratio(self, logp: torch.Tensor) -> torch.Tensor:
        """``ℓ - ℓ_old`` [T], or its mean over the policy tokens of the position's rollout.

        Without ``old_logp`` the policy itself, so the ratio is exactly 1 and only carries the
        gradient.
        """
        ratio = logp - (logp.detach() if self.old_logp is None else self.old_logp)
        return ratio if self.rollouts is None else self.rollouts.means(ratio)

    def ref_gap(self, logp: torch.Tensor) -> torch.Tensor | None:
        """``r - ℓ`` [T]."""
        return None if self.ref_logp is None else self.ref_logp - logp


def _old_logp(batch: HybridBatch, weights: TokenWeights) -> torch.Tensor | None:
    if batch.old_logp is None:
        return None
    used = weights.policy > 0
    check_finite("old_logp", batch.old_logp, used)
    return torch.where(used, batch.old_logp.to(torch.float64), 0.0)


def _ref_logp(batch: HybridBatch, weights: TokenWeights, kl_scope: KLScope) -> torch.Tensor | None:
    if batch.ref_logp is None:
        return None
    in_term = weights.completion if kl_scope == "completion" else weights.policy > 0
    check_finite("ref_logp", batch.ref_logp, (weights.beta > 0) & in_term)
    return torch.where(weights.live & weights.completion, batch.ref_logp.to(torch.float64), 0.0)
