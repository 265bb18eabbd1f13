"""Maps the metrics of the objective to the names that the trainer logs."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from wavalign_fast.data.records import Completion
from wavalign_fast.losses import MetricTotals
from wavalign_fast.losses.metric_names import RELEASED_NAMES
from wavalign_fast.train.ranks import Ranks

ALWAYS = {
    "loss": "loss/total",
    "rl_weight": "gate/lambda",
}
WITH_ANCHOR = {
    "anchor_loss": "loss/anchor",
    "anchor_text_tokens": "tokens/anchor_text",
    "anchor_speech_tokens": "tokens/anchor_speech",
    "anchor_text_entropy": "anchor_text_entropy",
    "anchor_speech_entropy": "anchor_speech_entropy",
}
WITH_ROLLOUTS = {
    "policy_loss": "loss/policy",
    "kl_loss": "loss/kl",
    "gate_raw": "gate/raw",
    "gate_reward": "gate/reward",
    "gate_variance": "gate/information",
    "reward": "reward/mean",
    "reward_std": "reward/std",
    "missing_rewards": "reward/failed",
    "frac_reward_zero_std": "frac_reward_zero_std",
    "policy_text_tokens": "tokens/policy_text",
    "policy_speech_tokens": "tokens/policy_speech",
    "text_kl": "text_kl",
    "speech_kl": "speech_kl",
    "text_entropy": "text_entropy",
    "speech_entropy": "speech_entropy",
    "clip_ratio/low_mean": "clip_ratio/low_mean",
    "clip_ratio/high_mean": "clip_ratio/high_mean",
}
MISMATCH = ("logp_diff/", "sampler_kl/", "importance/")
PREFERENCES = {
    "loss": "loss/total",
    "chosen_logp": "logps/chosen",
    "rejected_logp": "logps/rejected",
}
OF_REWARDS = ("reward/mean", "reward/std", "frac_reward_zero_std")
BROADEST = {
    "kl": ("kl", "text_kl", "speech_kl"),
    "entropy": ("total_entropy", "text_entropy", "speech_entropy"),
}


def named_metrics(
    metrics: dict[str, Tensor], *, rollouts: bool, rewarded: bool, anchored: bool
) -> dict[str, Tensor]:
    """Returns the objective's metrics [0-d] under the names that the trainer logs.

    Metrics of an absent term are left out. If every reward is missing, the metrics of rewards are
    NaN: a missing reward is never a number. ``kl`` and ``entropy`` are means over all completion
    tokens if both classes carry loss, else over the one class that does.
    """
    names = ALWAYS | (WITH_ANCHOR if anchored else {}) | (WITH_ROLLOUTS if rollouts else {})
    released = {RELEASED_NAMES.get(source, source): name for source, name in names.items()}
    named = {name: metrics[source] for source, name in released.items() if source in metrics}
    if not rollouts:
        return named
    if not rewarded:
        named |= {name: torch.full_like(named[name], math.nan) for name in OF_REWARDS}
    for name, sources in BROADEST.items():
        found = [metrics[source] for source in sources if source in metrics]
        if found:
            named[name] = found[0]
    return named


def mismatch_metrics(totals: MetricTotals) -> dict[str, Tensor]:
    """Returns how far the sampler is from the trainer, of the modalities that carry policy loss.

    Those of a modality without a token in the loss are left out.
    """
    return {
        name: value
        for name, value in totals.means().items()
        if name.startswith(MISMATCH) and not bool(value.isnan())
    }


def preference_metrics(totals: MetricTotals) -> dict[str, Tensor]:
    """Returns the metrics of a preference loss under TRL's names; none of pairs without a pair."""
    named = {PREFERENCES.get(name, name): value for name, value in totals.means().items()}
    wanted = ("loss/", "logps/", "rewards/")
    return {
        name: value
        for name, value in named.items()
        if name.startswith(wanted) and not bool(value.isnan())
    }


def rewards_of_rollouts(metrics: dict[str, Tensor], rewards: Tensor) -> dict[str, Tensor]:
    """Returns the metrics of rewards under the names that the trainer logs."""
    named = {WITH_ROLLOUTS[name]: value for name, value in metrics.items()}
    if bool(rewards.isnan().all()):
        named |= {name: torch.full_like(named[name], math.nan) for name in OF_REWARDS}
    return named


def completion_metrics(completions: Sequence[Completion]) -> dict[str, Tensor]:
    """Returns the mean length in tokens, and the share that reached the length limit."""
    if not completions:
        return {}
    lengths = torch.tensor([float(len(done.ids)) for done in completions])
    ended = torch.tensor([float(done.ended) for done in completions])
    return {"completion_length": lengths.mean(), "completion_clipped": 1.0 - ended.mean()}


def over_ranks(parts: Sequence[MetricTotals], ranks: Ranks) -> MetricTotals:
    """Returns the sum of the parts of all ranks, on the CPU; the same bits on every rank."""
    totals = sum(parts[1:], parts[0])
    return totals.with_vector(ranks.sum(totals.as_vector().cpu()))


def as_floats(metrics: dict[str, Tensor]) -> dict[str, float]:
    """Returns 0-d tensors as Python's floats."""
    return {name: float(value) for name, value in metrics.items()}


def as_tensors(metrics: Mapping[str, float]) -> dict[str, Tensor]:
    """Returns Python's numbers as 0-d tensors, float64."""
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in metrics.items()}
