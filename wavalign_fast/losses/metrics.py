"""What a step reports, under the names of the released code and, where it has none, of TRL."""

import torch

from wavalign_fast.losses.advantage import Std, group_stats, group_std
from wavalign_fast.losses.batch import HybridBatch
from wavalign_fast.losses.plan import StepPlan
from wavalign_fast.losses.policy import ImportanceLevel, PolicyTokens
from wavalign_fast.losses.rows import rows_with_weight, sum_of_row_means, weighted_sum


def step_metrics(
    batch: HybridBatch,
    plan: StepPlan,
    tokens: PolicyTokens,
    entropy: torch.Tensor | None,
    advantage: torch.Tensor,
    *,
    std: Std,
    level: ImportanceLevel,
) -> dict[str, torch.Tensor]:
    """0-d tensors on the batch's device; nothing waits for the device.

    KL and entropy are reported for the classes whose completion tokens all carry loss; of the
    others the product with the head was never made.
    """
    metrics = _reward_metrics(batch, std) | _count_metrics(batch, plan)
    classes = {
        "text": (plan.text_scored, plan.completion & ~plan.speech),
        "speech": (plan.speech_scored, plan.completion & plan.speech),
        "total": (plan.text_scored and plan.speech_scored, plan.completion),
    }
    for name, (scored, members) in classes.items():
        if scored:
            metrics |= _class_metrics(batch, members, tokens, entropy, name)
    metrics |= _clip_metrics(batch, plan, tokens, level)
    clipped = tokens.clipped_low | tokens.clipped_high
    moved = (plan.policy > 0) & (advantage != 0) & ~clipped
    metrics["zero_gradient_rows"] = (
        plan.live & ~moved & (plan.anchor == 0) & (plan.beta == 0)
    ).sum()
    return metrics


def _clip_metrics(
    batch: HybridBatch, plan: StepPlan, tokens: PolicyTokens, level: ImportanceLevel
) -> dict[str, torch.Tensor]:
    """Clipped share of the ratios: of the weighted tokens, or of the rollouts with one in scope."""
    rollouts = batch.rewards.numel()

    def share(clipped: torch.Tensor) -> torch.Tensor:
        flags = clipped.to(torch.float64)
        if level == "token":
            return weighted_sum(flags, plan.policy) / plan.policy.sum().clamp(min=1e-6)
        total = sum_of_row_means(flags, plan.policy, batch.policy_row, rollouts)
        return total / rows_with_weight(plan.policy, batch.policy_row, rollouts).clamp(min=1)

    return {
        "clip_ratio/low_mean": share(tokens.clipped_low),
        "clip_ratio/high_mean": share(tokens.clipped_high),
        "clip_ratio/region_mean": share(tokens.clipped_low | tokens.clipped_high),
    }


def _reward_metrics(batch: HybridBatch, std: Std) -> dict[str, torch.Tensor]:
    """Means over the groups that have a reward: one without any is missing, not 0."""
    stats = group_stats(batch.rewards)
    scored = stats.scored > 0
    groups = scored.sum().clamp(min=1)
    return {
        "reward": (stats.mean * scored).sum() / groups,
        # With the floor of the advantage's denominator, as released.
        "reward_std": ((group_std(stats, std) + 1e-4) * scored).sum() / groups,
        "frac_reward_zero_std": _per(groups, (scored & (stats.max == stats.min)).sum()),
        "missing_rewards": torch.isnan(batch.rewards).sum(),
    }


def _per(total: torch.Tensor | int, count: torch.Tensor) -> torch.Tensor:
    """``count / total`` in float32: of two integers torch's quotient is of the default dtype."""
    return count.to(torch.float32) / total


def _count_metrics(batch: HybridBatch, plan: StepPlan) -> dict[str, torch.Tensor]:
    policy, anchor = plan.policy > 0, plan.anchor > 0
    return {
        "completion_length": _per(max(batch.rewards.numel(), 1), plan.completion.sum()),
        "policy_text_tokens": (policy & ~plan.speech).sum(),
        "policy_speech_tokens": (policy & plan.speech).sum(),
        "anchor_text_tokens": (anchor & ~plan.speech).sum(),
        "anchor_speech_tokens": (anchor & plan.speech).sum(),
        "skipped_rows": (~plan.live).sum(),
    }


def _class_metrics(
    batch: HybridBatch,
    members: torch.Tensor,
    tokens: PolicyTokens,
    entropy: torch.Tensor | None,
    name: str,
) -> dict[str, torch.Tensor]:
    """KL as the mean over rollouts of token means, entropy as the token mean of each group."""
    groups, size = batch.rewards.shape
    weights = members.to(torch.float64)
    metrics = {}
    if tokens.kl is not None:
        total = sum_of_row_means(tokens.kl, weights, batch.policy_row, groups * size)
        metrics["kl" if name == "total" else f"{name}_kl"] = total / max(groups * size, 1)
    if entropy is not None:
        prompt = torch.where(batch.policy_row < 0, -1, batch.policy_row // max(size, 1))
        total = sum_of_row_means(entropy, weights, prompt, groups)
        scored = rows_with_weight(weights, prompt, groups)
        metrics[f"{name}_entropy"] = total / scored.clamp(min=1)
    return metrics
