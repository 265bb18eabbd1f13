"""What each position counts in the terms of the objective, and in its derivative."""

from dataclasses import dataclass

import torch

from wavalign_fast.losses.advantage import Std, group_advantages
from wavalign_fast.losses.batch import HybridBatch, on_device
from wavalign_fast.losses.normalise import Normalisation, Normalisers, normalised
from wavalign_fast.losses.plan import KLScope, StepPlan
from wavalign_fast.losses.policy import PolicyTokens
from wavalign_fast.losses.rows import at_positions, shares, weighted_sum
from wavalign_fast.ops import LossOptions
from wavalign_fast.ops.live_rows import sent
from wavalign_fast.ops.row_kernels import TokenTable


@dataclass(frozen=True, kw_only=True, eq=False)
class TermWeights:
    """Weights [T] of the positions in each term; a term is the weighted sum of its tokens."""

    policy: torch.Tensor
    anchor: torch.Tensor
    kl: torch.Tensor | None
    """Of the KL term of ``kl_scope="completion"``; ``None`` where the KL is in the policy term."""

    @classmethod
    def of(
        cls,
        batch: HybridBatch,
        plan: StepPlan,
        by: Normalisers,
        *,
        kl_scope: KLScope,
        normalisation: Normalisation,
    ) -> "TermWeights":
        def per_position(
            weights: torch.Tensor, row: torch.Tensor, count: int, by: torch.Tensor | float
        ) -> torch.Tensor:
            in_row = weights if normalisation == "token" else shares(weights, row, count)
            return normalised(in_row, by)

        rollouts = batch.rewards.numel()
        own_kl = plan.completion.to(plan.policy) if kl_scope == "completion" else None
        return cls(
            policy=per_position(plan.policy, batch.policy_row, rollouts, by.policy),
            anchor=per_position(plan.anchor, batch.anchor_row, batch.anchor_rows, by.anchor),
            kl=None if own_kl is None else per_position(own_kl, batch.policy_row, rollouts, by.kl),
        )

    def losses(
        self, plan: StepPlan, tokens: PolicyTokens, logp: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Policy term, anchor, and the KL where it is not a part of the policy term; 0-d each."""
        zero = torch.zeros_like(logp)
        kl = zero if tokens.kl is None else torch.where(plan.beta > 0, plan.beta * tokens.kl, 0.0)
        anchor = weighted_sum(-logp, self.anchor)
        if self.kl is None:
            policy = weighted_sum(kl - tokens.surrogate, self.policy)
            return policy, anchor, torch.zeros_like(policy)
        return weighted_sum(-tokens.surrogate, self.policy), anchor, weighted_sum(kl, self.kl)

    def table(
        self, batch: HybridBatch, plan: StepPlan, advantage: torch.Tensor, lam: torch.Tensor
    ) -> TokenTable:
        """The coefficients of ``L``'s derivative by each log-prob, λ in them."""
        mix = lam.to(self.policy.dtype)
        policy = mix * self.policy
        return TokenTable(
            policy_coef=policy,
            advantage=advantage,
            kl_coef=plan.beta * (policy if self.kl is None else self.kl),
            anchor_coef=(1.0 - mix) * self.anchor,
            old_logp=batch.old_logp,
            ref_logp=batch.ref_logp,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class StepTerms:
    """Everything of a step but its log-probs, on one device."""

    batch: HybridBatch
    plan: StepPlan
    lam: torch.Tensor
    weights: TermWeights
    advantage: torch.Tensor
    """A of each position's rollout, [T] float64."""

    @classmethod
    def of(
        cls,
        batch: HybridBatch,
        plan: StepPlan,
        lam: torch.Tensor,
        normalisers: Normalisers | None,
        *,
        kl_scope: KLScope,
        normalisation: Normalisation,
        std: Std,
        options: LossOptions | None = None,
    ) -> "StepTerms":
        """The terms where the batch is; where a λ or a normaliser is on a device, they are there:
        to read it from the host would be to wait."""
        for given in (lam, *(() if normalisers is None else vars(normalisers).values())):
            if isinstance(given, torch.Tensor) and given.device.type != "cpu":
                batch, plan = batch.to(given.device), plan.to(given.device)
        by = normalisers or Normalisers.of(batch, plan, normalisation)
        advantages = group_advantages(batch.rewards, std=std, options=options).to(torch.float64)
        return cls(
            batch=batch,
            plan=plan,
            lam=sent(lam, batch.targets.device),
            weights=TermWeights.of(batch, plan, by, kl_scope=kl_scope, normalisation=normalisation),
            advantage=at_positions(advantages.reshape(-1), batch.policy_row),
        )

    def table(self) -> TokenTable:
        """What the kernels make each position's gradient of."""
        return self.weights.table(self.batch, self.plan, self.advantage, self.lam)

    def to(self, device: torch.device) -> "StepTerms":
        """The terms on ``device``; the host does not wait for the copies."""
        return StepTerms(
            batch=self.batch.to(device),
            plan=self.plan.to(device),
            lam=sent(self.lam, device),
            weights=on_device(self.weights, device),
            advantage=sent(self.advantage, device),
        )
