"""The tables of a step: the weight of each position in every term, and its coefficients."""

from dataclasses import dataclass

import torch

from wavalign_fast.losses.advantage import Std, group_advantages
from wavalign_fast.losses.batch import HybridBatch
from wavalign_fast.losses.checks import check_finite, check_importance
from wavalign_fast.losses.metrics import StepMetrics
from wavalign_fast.losses.normalisers import Normalisation, Normalisers, normalised
from wavalign_fast.losses.policy import ImportanceLevel
from wavalign_fast.losses.segments import at_positions, mean_weights, segment_means
from wavalign_fast.losses.weights import KLScope, TokenWeights
from wavalign_fast.ops import LossOptions
from wavalign_fast.ops.token_math import TokenTable
from wavalign_fast.ops.transfer import copied_together


@dataclass(frozen=True, kw_only=True, eq=False)
class Rollouts:
    """The rollout of each policy token, for ratios of whole rollouts."""

    row: torch.Tensor
    """[T] int64, -1 is none."""
    weights: torch.Tensor
    """[T], in the rollout's mean."""
    count: int

    def means(self, values: torch.Tensor) -> torch.Tensor:
        """The weighted mean of ``values`` over its rollout, at each position [T]."""
        return at_positions(segment_means(values, self.weights, self.row, self.count), self.row)


@dataclass(frozen=True, kw_only=True, eq=False)
class StepTables:
    """Everything of a step but its log-probs, on one device.

    Tables are [T] float64. A term of the loss is the sum of its tokens times their weights here.
    """

    rl_weight: torch.Tensor
    """λ, 0-d."""
    policy: torch.Tensor
    """Weights in the policy term."""
    anchor: torch.Tensor
    """Weights in the anchor."""
    kl: torch.Tensor
    """Weights in the KL, times β."""
    kl_is_own_term: bool
    """Whether the KL is outside λ, as a term of its own, or else a part of the policy term."""
    advantage: torch.Tensor
    """A of each position's rollout, times the position's ``importance``."""
    old_logp: torch.Tensor | None
    """Log-probs under the policy that sampled; 0 at all but policy tokens, so that a NaN elsewhere
    does not reach the loss."""
    ref_logp: torch.Tensor | None
    """Log-probs under the reference; 0 at all but live completion tokens. Tokens with β = 0 keep
    theirs, for the metrics."""
    rollouts: Rollouts | None
    """Set where a ratio is that of a whole rollout."""
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
        advantage_std: Std,
        importance_sampling_level: ImportanceLevel,
        clips: bool,
        options: LossOptions | None,
    ) -> "StepTables":
        """The tables of ``batch``, on the CPU if all arguments are there.

        If a table, λ or a normaliser is on another device, the tables are built there: reading it
        from the host would wait for the device.
        """
        counts = () if normalisers is None else vars(normalisers).values()
        given = (*vars(batch).values(), rl_weight, *counts)
        for device in {t.device for t in given if isinstance(t, torch.Tensor)}:
            if device.type != "cpu":
                batch, weights, rl_weight, normalisers = copied_together(
                    device, batch, weights, rl_weight, normalisers
                )
        by = normalisers or Normalisers.of(batch, weights, normalisation)
        count = batch.rollouts
        policy = _in_mean(weights.policy, batch.policy_row, count, by.policy, normalisation)
        anchor = _in_mean(
            weights.anchor, batch.anchor_row, batch.anchor_rows, by.anchor, normalisation
        )
        in_kl = policy
        if kl_scope == "completion":
            completion = weights.completion.to(weights.policy)
            in_kl = _in_mean(completion, batch.policy_row, count, by.kl, normalisation)
        of_rollouts = batch.advantages
        if batch.rewards is not None:
            of_rollouts = group_advantages(batch.rewards, std=advantage_std, options=options)
        assert of_rollouts is not None  # one of the two was given
        advantage = at_positions(of_rollouts.to(torch.float64).reshape(-1), batch.policy_row)
        advantage = _weighted_by_importance(advantage, batch, weights)
        rollouts = None
        if importance_sampling_level == "sequence":
            rollouts = Rollouts(row=batch.policy_row, weights=weights.policy, count=count)
        return cls(
            rl_weight=rl_weight,
            policy=policy,
            anchor=anchor,
            kl=weights.beta * in_kl,
            kl_is_own_term=kl_scope == "completion",
            advantage=advantage,
            old_logp=_old_logp(batch, weights),
            ref_logp=_ref_logp(batch, weights, kl_scope),
            rollouts=rollouts,
            metrics=StepMetrics.of(
                batch,
                weights,
                advantage,
                normalisers,
                advantage_std=advantage_std,
                importance_sampling_level=importance_sampling_level,
                clips=clips,
            ),
        )

    def coefficients(self) -> TokenTable:
        """What the row kernels compute ``dL/dlogp`` of each position from; λ is included."""
        rl_weight = self.rl_weight.to(self.policy.dtype)
        return TokenTable(
            policy_coef=rl_weight * self.policy,
            advantage=self.advantage,
            kl_coef=self.kl if self.kl_is_own_term else rl_weight * self.kl,
            anchor_coef=(1.0 - rl_weight) * self.anchor,
            old_logp=self.old_logp,
            ref_logp=self.ref_logp,
        )

    def log_ratio(self, logp: torch.Tensor) -> torch.Tensor:
        """``ℓ - ℓ_old`` [T], or its mean over the policy tokens of the position's rollout.

        Without ``old_logp`` the old policy is the policy itself: the ratio is exactly 1 and only
        carries the gradient.
        """
        ratio = logp - (logp.detach() if self.old_logp is None else self.old_logp)
        return ratio if self.rollouts is None else self.rollouts.means(ratio)

    def ref_gap(self, logp: torch.Tensor) -> torch.Tensor | None:
        """``r - ℓ`` [T]."""
        return None if self.ref_logp is None else self.ref_logp - logp


def _in_mean(
    weights: torch.Tensor,
    row: torch.Tensor,
    count: int,
    by: torch.Tensor | float,
    normalisation: Normalisation,
) -> torch.Tensor:
    """Weights [T] in the mean over ``count`` rows of token means, or over all tokens alike."""
    in_row = weights if normalisation == "token" else mean_weights(weights, row, count)
    return normalised(in_row, by)


def _weighted_by_importance(
    advantage: torch.Tensor, batch: HybridBatch, weights: TokenWeights
) -> torch.Tensor:
    """The weight is never negative, so ``min(ρA, clip(ρ)A)`` scales with it, clipped or not."""
    if batch.importance is None:
        return advantage
    used = weights.policy > 0
    check_importance(batch.importance, used)
    return torch.where(used, advantage * batch.importance.to(torch.float64), 0.0)


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
