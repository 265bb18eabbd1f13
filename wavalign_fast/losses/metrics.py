"""The metrics of a step, named as in the released code, and where it has none as in TRL."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from wavalign_fast.losses.advantage import ADVANTAGE_EPS, Std, group_stats, group_std
from wavalign_fast.losses.batch import HybridBatch
from wavalign_fast.losses.normalisers import Normalisers, normalised
from wavalign_fast.losses.policy import ImportanceLevel, PolicyTokens
from wavalign_fast.losses.segments import mean_weights, segments_with_weight, weighted_sum
from wavalign_fast.losses.totals import MetricTotals
from wavalign_fast.losses.weights import TokenWeights

ANCHOR_ENTROPIES = ("anchor_text_entropy", "anchor_speech_entropy")
CLIPPED = ("clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean")


@dataclass(frozen=True, kw_only=True, eq=False)
class StepMetrics:
    """The metrics of a step that need no log-probs, and the weights that average the others.

    KL and entropy are reported for a class only if all its completion tokens carry loss: the others
    are never multiplied with the head. The entropy of demonstrations is that of the tokens that the
    anchor weighs. Which names there are depends on the options and on which
    tables the batch has, not on its values, so that all ranks have the same names.
    """

    known: dict[str, torch.Tensor]
    """0-d metrics of rewards and counts, as if nothing were clipped."""
    sums: dict[str, torch.Tensor]
    """0-d float64, the part's share of those of them that add up over the parts of a step."""
    classes: tuple[str, ...]
    """The C classes that are reported: "text", "speech", "total"."""
    kl: torch.Tensor | None
    """[2, C, T] of the tokens in the KL of a class, the mean over rollouts of token means: over the
    rollouts of the batch, and over those of the step. ``None`` without a reference."""
    entropy: torch.Tensor
    """[2, C + 2, T] of the tokens in the entropy of a class, and of text and speech that is
    anchored: in the mean over groups of token means (anchored: over tokens), and 1 for the sum over
    tokens."""
    entropy_tokens: torch.Tensor
    """[C + 2], the tokens of the sum."""
    clipped: tuple[torch.Tensor, torch.Tensor] | None
    """[2, 1, T] in the clipped fraction of weighted tokens, or of rollouts with a token in scope;
    and 0-d, the sum if all were clipped. ``None`` without clipping."""
    moved: torch.Tensor
    """[T] bool, tokens that have no gradient if clipped."""

    @classmethod
    def of(
        cls,
        batch: HybridBatch,
        weights: TokenWeights,
        advantage: torch.Tensor,
        normalisers: Normalisers | None,
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
        none = advantage.new_zeros((0, len(advantage)), dtype=torch.float64)
        tokens = torch.stack([*in_class.values()]) if in_class else none
        groups = [_of_groups(batch, of) for of in in_class.values()]
        anchored = torch.stack([~weights.speech, weights.speech]) & (weights.anchor > 0)
        anchored = anchored.to(torch.float64)
        per_anchored = anchored / anchored.sum(-1, keepdim=True).clamp(min=1)
        of_batch = max(batch.rollouts, 1)
        of_step = None if normalisers is None else normalisers.rollouts
        of_step = of_batch if of_step is None else of_step
        moved = (weights.policy > 0) & (advantage != 0)
        without_other = weights.live & (weights.anchor == 0) & (weights.beta == 0)
        counts = _count_metrics(weights) | {"zero_gradient_rows": (without_other & ~moved).sum()}
        length = weights.completion.sum()
        sums = torch.stack([*counts.values(), length]).double()
        zeros = dict.fromkeys(CLIPPED, advantage.new_zeros(()))
        return cls(
            known=({} if batch.rewards is None else reward_metrics(batch.rewards, advantage_std))
            | {"completion_length": _per(of_batch, length)}
            | zeros
            | counts,
            sums=zeros
            | dict(zip(counts, sums, strict=False))
            | {"completion_length": normalised(sums[-1], of_step)},
            classes=tuple(in_class),
            kl=_of_rollouts(batch, tokens, of_step) if batch.ref_logp is not None else None,
            entropy=torch.stack(
                [torch.stack([*groups, *per_anchored]), torch.cat([tokens, anchored])]
            ),
            entropy_tokens=torch.cat([tokens, anchored]).sum(-1),
            clipped=_clip_weights(batch, weights, importance_sampling_level) if clips else None,
            moved=without_other & moved,
        )

    def of_tokens(
        self, tokens: PolicyTokens, entropy: torch.Tensor | None
    ) -> tuple[dict[str, torch.Tensor], MetricTotals]:
        """All metrics of the batch, and those that add up; 0-d, without a host sync."""
        metrics, sums = dict(self.known), dict(self.sums)
        counts: dict[str, torch.Tensor] = {}

        def add(names: Sequence[str], values: torch.Tensor) -> None:  # [2, names]
            for table, found in zip((metrics, sums), values, strict=True):
                table |= dict(zip(names, found, strict=True))

        if tokens.kl is not None and self.kl is not None:
            names = ["kl" if name == "total" else f"{name}_kl" for name in self.classes]
            add(names, weighted_sum(tokens.kl, self.kl))
        if entropy is not None:
            names = [*(f"{name}_entropy" for name in self.classes), *ANCHOR_ENTROPIES]
            add(names, weighted_sum(entropy, self.entropy))
            counts |= dict(zip(names, self.entropy_tokens, strict=True))
        if self.clipped is not None:
            weights, clippable = self.clipped
            clipped = tokens.clipped_low | tokens.clipped_high
            flags = torch.stack([tokens.clipped_low, tokens.clipped_high, clipped])
            add(CLIPPED, (flags * weights).sum(-1))
            counts |= dict.fromkeys(CLIPPED, clippable)
            stopped = sums["zero_gradient_rows"] + (self.moved & clipped).sum()
            metrics["zero_gradient_rows"] = sums["zero_gradient_rows"] = stopped
        return metrics, MetricTotals(sums, counts)


def reward_metrics(rewards: torch.Tensor, std: Std) -> dict[str, torch.Tensor]:
    """Means over the groups [B, G] with a reward: a group without any is missing, not 0."""
    stats = group_stats(rewards)
    rewarded = stats.rewarded > 0
    groups = rewarded.sum().clamp(min=1)
    return {
        "reward": (stats.mean * rewarded).sum() / groups,
        # The denominator of the advantage, as in the released code.
        "reward_std": ((group_std(stats, std) + ADVANTAGE_EPS) * rewarded).sum() / groups,
        "frac_reward_zero_std": _per(groups, (rewarded & (stats.max == stats.min)).sum()),
        "missing_rewards": torch.isnan(rewards).sum(),
    }


def _per(total: torch.Tensor | int, count: torch.Tensor) -> torch.Tensor:
    """``count / total`` in float32: torch divides two integers in the default dtype."""
    return count.to(torch.float32) / total


def _of_groups(batch: HybridBatch, weights: torch.Tensor) -> torch.Tensor:
    """Weights [T] in the mean over the groups with a weight of weighted token means."""
    size = max(batch.group_size, 1)
    groups = batch.rollouts // size
    prompt = torch.where(batch.policy_row < 0, -1, batch.policy_row // size)
    nonempty = segments_with_weight(weights, prompt, groups).clamp(min=1)
    return mean_weights(weights, prompt, groups) / nonempty


def _of_rollouts(
    batch: HybridBatch, in_class: torch.Tensor, of_step: torch.Tensor | float
) -> torch.Tensor:
    """Weights [2, C, T] in the mean over all rollouts, of the batch and of the step, of token means
    of a class."""
    count = batch.rollouts
    rows = [mean_weights(of, batch.policy_row, count) for of in in_class]
    in_rollout = torch.stack(rows) if rows else in_class
    return torch.stack([in_rollout / max(count, 1), normalised(in_rollout, of_step)])


def _clip_weights(
    batch: HybridBatch, weights: TokenWeights, level: ImportanceLevel
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [2, 1, T] of tokens or of rollouts in the clipped fraction and in its sum; the sum if
    all are clipped."""
    each, total = weights.policy, weights.policy.sum()
    if level == "sequence":
        count = batch.rollouts
        each = mean_weights(weights.policy, batch.policy_row, count)
        total = segments_with_weight(weights.policy, batch.policy_row, count).double()
    return torch.stack([each / total.clamp(min=1e-6), each])[:, None], total


def _count_metrics(weights: TokenWeights) -> dict[str, torch.Tensor]:
    policy, anchor = weights.policy > 0, weights.anchor > 0
    return {
        "policy_text_tokens": (policy & ~weights.speech).sum(),
        "policy_speech_tokens": (policy & weights.speech).sum(),
        "anchor_text_tokens": (anchor & ~weights.speech).sum(),
        "anchor_speech_tokens": (anchor & weights.speech).sum(),
        "skipped_rows": (~weights.live).sum(),
    }
