"""The metrics of a step, named as in the released code, and where it has none as in TRL."""

from dataclasses import dataclass

import torch

from wavalign_fast.losses.advantage import ADVANTAGE_EPS, Std, group_stats, group_std
from wavalign_fast.losses.batch import HybridBatch
from wavalign_fast.losses.policy import ImportanceLevel, PolicyTokens
from wavalign_fast.losses.segments import mean_weights, segments_with_weight, weighted_sum
from wavalign_fast.losses.weights import TokenWeights

CLIPPED = ("clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean")


@dataclass(frozen=True, kw_only=True, eq=False)
class StepMetrics:
    """The metrics of a step that need no log-probs, and the weights that average the others.

    KL and entropy are reported for a class only if all its completion tokens carry loss: the others
    are never multiplied with the head.
    """

    known: dict[str, torch.Tensor]
    """0-d metrics of rewards and counts, as if nothing were clipped."""
    classes: tuple[str, ...]
    """The C classes that are reported: "text", "speech", "total"."""
    kl: torch.Tensor
    """[C, T] weights of the tokens in the KL of a class, the mean over rollouts of token means; no
    rows without a reference."""
    entropy: torch.Tensor
    """[C, T] weights of the tokens in the entropy of a class, the mean over groups of token means.
    """
    clipped: torch.Tensor | None
    """[T] weights in the clipped fraction, of weighted tokens or of rollouts with a token in scope;
    ``None`` without clipping."""
    clippable: torch.Tensor
    """[T] bool, tokens that have no gradient if clipped."""

    @classmethod
    def of(
        cls,
        batch: HybridBatch,
        weights: TokenWeights,
        advantage: torch.Tensor,
        *,
        advantage_std: Std,
        importance_sampling_level: ImportanceLevel,
        clips: bool,
    ) -> "StepMetrics":
        members = {
            "text": (weights.text_live, weights.completion & ~weights.speech),
            "speech": (weights.speech_live, weights.completion & weights.speech),
            "total": (weights.text_live and weights.speech_live, weights.completion),
        }
        in_class = {
            name: where.to(torch.float64) for name, (live, where) in members.items() if live
        }
        none = advantage.new_zeros((0, len(advantage)))
        measured = in_class.values() if batch.ref_logp is not None else ()
        kl = [_of_rollouts(batch, of) for of in measured]
        entropy = [_of_groups(batch, of) for of in in_class.values()]
        moved = (weights.policy > 0) & (advantage != 0)
        without_other = weights.live & (weights.anchor == 0) & (weights.beta == 0)
        known = _reward_metrics(batch, advantage_std) | _count_metrics(batch, weights)
        known |= {name: advantage.new_zeros(()) for name in CLIPPED}
        known["zero_gradient_rows"] = (without_other & ~moved).sum()
        return cls(
            known=known,
            classes=tuple(in_class),
            kl=torch.stack(kl) if kl else none,
            entropy=torch.stack(entropy) if entropy else none,
            clipped=_clip_weights(batch, weights, importance_sampling_level) if clips else None,
            clippable=without_other & moved,
        )

    def of_tokens(
        self, tokens: PolicyTokens, entropy: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """All metrics, 0-d on the device of the tokens, without a host sync."""
        metrics = dict(self.known)
        if tokens.kl is not None and self.classes:
            for name, value in zip(self.classes, weighted_sum(tokens.kl, self.kl), strict=True):
                metrics["kl" if name == "total" else f"{name}_kl"] = value
        if entropy is not None and self.classes:
            for name, value in zip(self.classes, weighted_sum(entropy, self.entropy), strict=True):
                metrics[f"{name}_entropy"] = value
        if self.clipped is not None:
            clipped = tokens.clipped_low | tokens.clipped_high
            flags = torch.stack([tokens.clipped_low, tokens.clipped_high, clipped])
            for name, value in zip(CLIPPED, (flags * self.clipped).sum(-1), strict=True):
                metrics[name] = value
            metrics["zero_gradient_rows"] = (
                metrics["zero_gradient_rows"] + (self.clippable & clipped).sum()
            )
        return metrics


def _of_rollouts(batch: HybridBatch, weights: torch.Tensor) -> torch.Tensor:
    """Weights [T] in the mean over all rollouts of weighted token means."""
    rollouts = batch.rewards.numel()
    return mean_weights(weights, batch.policy_row, rollouts) / max(rollouts, 1)


def _of_groups(batch: HybridBatch, weights: torch.Tensor) -> torch.Tensor:
    """Weights [T] in the mean over the groups with a weight of weighted token means."""
    groups, size = batch.rewards.shape
    prompt = torch.where(batch.policy_row < 0, -1, batch.policy_row // max(size, 1))
    nonempty = segments_with_weight(weights, prompt, groups).clamp(min=1)
    return mean_weights(weights, prompt, groups) / nonempty


def _clip_weights(
    batch: HybridBatch, weights: TokenWeights, importance_sampling_level: ImportanceLevel
) -> torch.Tensor:
    if importance_sampling_level == "token":
        return weights.policy / weights.policy.sum().clamp(min=1e-6)
    rollouts = batch.rewards.numel()
    nonempty = segments_with_weight(weights.policy, batch.policy_row, rollouts).clamp(min=1)
    return mean_weights(weights.policy, batch.policy_row, rollouts) / nonempty


def _reward_metrics(batch: HybridBatch, std: Std) -> dict[str, torch.Tensor]:
    """Means over the groups with a reward: a group without any is missing, not 0."""
    stats = group_stats(batch.rewards)
    rewarded = stats.rewarded > 0
    groups = rewarded.sum().clamp(min=1)
    return {
        "reward": (stats.mean * rewarded).sum() / groups,
        # The denominator of the advantage, as in the released code.
        "reward_std": ((group_std(stats, std) + ADVANTAGE_EPS) * rewarded).sum() / groups,
        "frac_reward_zero_std": _per(groups, (rewarded & (stats.max == stats.min)).sum()),
        "missing_rewards": torch.isnan(batch.rewards).sum(),
    }


def _per(total: torch.Tensor | int, count: torch.Tensor) -> torch.Tensor:
    """``count / total`` in float32: torch divides two integers in the default dtype."""
    return count.to(torch.float32) / total


def _count_metrics(batch: HybridBatch, weights: TokenWeights) -> dict[str, torch.Tensor]:
    policy, anchor = weights.policy > 0, weights.anchor > 0
    return {
        "completion_length": _per(max(batch.rewards.numel(), 1), weights.completion.sum()),
        "policy_text_tokens": (policy & ~weights.speech).sum(),
        "policy_speech_tokens": (policy & weights.speech).sum(),
        "anchor_text_tokens": (anchor & ~weights.speech).sum(),
        "anchor_speech_tokens": (anchor & weights.speech).sum(),
        "skipped_rows": (~weights.live).sum(),
    }
