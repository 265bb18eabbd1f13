"""Group-relative advantages of rewards, some of which may be missing."""

from typing import Literal, NamedTuple

import torch

from wavalign_fast.losses.rewards import refuse_infinite, rewards_table
from wavalign_fast.ops import LossOptions, cuda
from wavalign_fast.ops.backends import takes_cuda_groups
from wavalign_fast.ops.inputs import finite_number

Std = Literal["population", "sample"]
ADVANTAGE_EPS = 1e-4
"""Added to the standard deviation, so that nearly equal rewards have small advantages."""


class GroupStats(NamedTuple):
    """Statistics of each group over its rollouts with a reward, each [B] float64."""

    rewarded: torch.Tensor
    """How many rollouts have a reward."""
    mean: torch.Tensor
    variance: torch.Tensor
    """Population variance."""
    max: torch.Tensor
    min: torch.Tensor


def group_stats(rewards: torch.Tensor) -> GroupStats:
    """Statistics of rewards [B, G], NaN = missing; all 0 for a group without any reward."""
    rewards = rewards.to(torch.float64)
    valid = ~torch.isnan(rewards)
    count = valid.sum(dim=1)
    divisor = count.clamp(min=1)
    filled = torch.where(valid, rewards, 0)
    mean = filled.sum(dim=1) / divisor
    deviation = torch.where(valid, rewards - mean.unsqueeze(1), 0)
    infinity = torch.inf
    top = torch.where(valid, rewards, -infinity).amax(dim=1) if rewards.shape[1] else mean
    low = torch.where(valid, rewards, infinity).amin(dim=1) if rewards.shape[1] else mean
    return GroupStats(
        count,
        mean,
        deviation.square().sum(dim=1) / divisor,
        torch.where(count > 0, top, 0),
        torch.where(count > 0, low, 0),
    )


def group_advantages(
    rewards: torch.Tensor,
    *,
    std: Std = "population",
    eps: float = ADVANTAGE_EPS,
    options: LossOptions | None = None,
) -> torch.Tensor:
    """``A_i = (R_i - mean R) / (std R + eps)`` within each prompt's group (GRPO, arXiv 2402.03300).

    Args:
        rewards: [B, G] floats, or a nested list of numbers. NaN or ``None`` is a missing reward:
            the statistics leave it out, and its advantage is 0.
        std: ``"population"`` divides the squared deviations by G, ``"sample"`` by G - 1.
        eps: at least 0, in units of the reward.
        options: its ``backend`` decides whether a CUDA kernel may compute this.

    Returns:
        [B, G] in the dtype of ``rewards``, without a gradient; 0 in groups of fewer than two
        rewards and in groups of equal rewards.

    Raises:
        ValueError: an argument that does not fit; on the CPU also an infinite reward (on a GPU the
            advantages of its group are NaN).
    """
    rewards = rewards_table(rewards)
    refuse_infinite(rewards)
    eps = finite_number("eps", eps, low=0.0)
    if std not in ("population", "sample"):
        raise ValueError(f"std: got {std!r}, want 'population' or 'sample'")
    rewards = rewards.detach()
    if takes_cuda_groups(rewards, options):
        return cuda.group_advantages(rewards, eps=eps, sample_std=std == "sample")
    stats = group_stats(rewards)
    # Rounded before eps is added, as the result of `torch.std` is: the same bits as the released
    # code's.
    mean, deviation = (x.to(rewards.dtype) for x in (stats.mean, group_std(stats, std)))
    # Equal rewards are recognised by their range. Their distance from the mean need not be 0, for
    # the mean is rounded.
    informative = (stats.rewarded > 1) & (stats.max > stats.min)
    advantages = (rewards - mean.unsqueeze(1)) / (deviation + eps).unsqueeze(1)
    return torch.where(informative.unsqueeze(1) & ~torch.isnan(rewards), advantages, 0)


def group_std(stats: GroupStats, std: Std) -> torch.Tensor:
    """Standard deviation of each group [B]; 0 for a group without any reward."""
    if std == "population":
        return stats.variance.sqrt()
    return (stats.variance * stats.rewarded / (stats.rewarded - 1).clamp(min=1)).sqrt()
