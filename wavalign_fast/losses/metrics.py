"""What a step reports, under the names of the released code and, where it has none, of TRL."""

from dataclasses import dataclass

import torch

from wavalign_fast.losses.advantage import Std, group_stats, group_std
from wavalign_fast.losses.batch import HybridBatch
from wavalign_fast.losses.policy import ImportanceLevel, PolicyTokens
from wavalign_fast.losses.segments import mean_weights, segments_with_weight, weighted_sum
from wavalign_fast.losses.weights import TokenWeights

CLIPPED = ("clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean")


@dataclass(frozen=True, kw_only=True, eq=False)
class StepMetrics:
    """A step's metrics up to its log-probs: what is known without them, and how they are averaged.

    KL and entropy are reported for the classes whose completion tokens all carry loss; of the
    others the product with the head was never made.
    """

    known: dict[str, torch.Tensor]
    """0-d, of rewards and counts; as of a step in which nothing is clipped."""
    classes: tuple[str, ...]
    kl: torch.Tensor
    """Weights [C, T] of the tokens in the KL of each class: the mean over rollouts of their means
    over tokens."""
    entropy: torch.Tensor
    """Weights [C, T] likewise: the mean over groups of token means."""
    clipped: torch.Tensor | None
    """Weights [T] of the clipped share, of the weighted tokens or of the rollouts with one in
    scope; ``None`` where nothing clips."""
    held: torch.Tensor
    """[T] bool: tokens that only clipping can leave without a gradient."""

    @classmethod
    def of(
        cls,
        batch: HybridBatch,
        weights: TokenWeights,
        advantage: torch.Tensor,
        *,
        std: Std,
        level: ImportanceLevel,
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
        without = weights.live & (weights.anchor == 0) & (weights.beta == 0)
        known = _reward_metrics(batch, std) | _count_metrics(batch, weights)
        known |= {name: advantage.new_zeros(()) for name in CLIPPED}
        known["zero_gradient_rows"] = (without & ~moved).sum()
        return cls(
            known=known,
            classes=tuple(in_class),
            kl=torch.stack(kl) if kl else none,
            entropy=torch.stack(entropy) if entropy else none,
            clipped=_clip_weights(batch, weights, level) if clips else None,
            held=without & moved,
        )

    def of_tokens(
        self, tokens: PolicyTokens, entropy: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """All metrics, 0-d tensors on the tokens' device; nothing waits for the device."""
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
                metrics["zero_gradient_rows"] + (self.held & clipped).sum()
            )
        return metrics


def _of_rollouts(batch: HybridBatch, weights: torch.Tensor) -> torch.Tensor:
    rollouts = batch.rewards.numel()
    return mean_weights(weights, batch.policy_row, rollouts) / max(rollouts, 1)


def _of_groups(batch: HybridBatch, weights: torch.Tensor) -> torch.Tensor:
    groups, size = batch.rewards.shape
    prompt = torch.where(batch.policy_row < 0, -1, batch.policy_row // max(size, 1))
    nonempty = segments_with_weight(weights, prompt, groups).clamp(min=1)
    return mean_weights(weights, prompt, groups) / nonempty


def _clip_weights(
    batch: HybridBatch, weights: TokenWeights, level: ImportanceLevel
) -> torch.Tensor:
    if level == "token":
        return weights.policy / weights.policy.sum().clamp(min=1e-6)
    rollouts = batch.rewards.numel()
    nonempty = segments_with_weight(weights.policy, batch.policy_row, rollouts).clamp(min=1)
    return mean_weights(weights.policy, batch.policy_row, rollouts) / nonempty


def _reward_metrics(batch: HybridBatch, std: Std) -> dict[str, torch.Tensor]:
    """Means over the groups that have a reward: one without any is missing, not 0."""
    stats = group_stats(batch.rewards)
    rewarded = stats.rewarded > 0
    groups = rewarded.sum().clamp(min=1)
    return {
        "reward": (stats.mean * rewarded).sum() / groups,
        # With the floor of the advantage's denominator, as released.
        "reward_std": ((group_std(stats, std) + 1e-4) * rewarded).sum() / groups,
        "frac_reward_zero_std": _per(groups, (rewarded & (stats.max == stats.min)).sum()),
        "missing_rewards": torch.isnan(batch.rewards).sum(),
    }


def _per(total: torch.Tensor | int, count: torch.Tensor) -> torch.Tensor:
    """``count / total`` in float32: of two integers torch's quotient is of the default dtype."""
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
