"""The adaptive mixture: how much of the loss is reinforcement, from the rewards of the step."""

from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from wavalign_fast.losses.advantage import (
    ADVANTAGE_EPS,
    GroupStats,
    check_rewards,
    group_stats,
)
from wavalign_fast.ops import cuda


class MixingGate(nn.Module):
    """λ of a step: is the best rollout acceptable, and do the rollouts differ (arXiv 2604.14932)?

    Per prompt ``λ_raw = λ_max · sigmoid(slope (max R - threshold)) · clip(Var R / variance_scale,
    0, 1)``; then the mean over the prompts of the call and of all ranks, smoothed as
    ``λ = (1 - ema) λ_raw + ema λ_before`` and clamped to [0, λ_max]. The first step takes λ_raw.
    ``threshold`` and ``variance_scale`` are in units of the reward; the defaults are those of a 1-5
    scale, whose largest variance is 4.

    Args:
        initial: λ of the step before, to go on from; ``None`` starts anew.

    Attributes:
        value: λ of the last step, 0-d float32, in ``state_dict``; ``None`` before the first.
    """

    value: torch.Tensor | None

    def __init__(
        self,
        lambda_max: float = 0.8,
        ema: float = 0.9,
        slope: float = 5.0,
        threshold: float = 3.0,
        variance_scale: float = 4.0,
        initial: float | None = None,
    ) -> None:
        super().__init__()
        for name, value, top in (("lambda_max", lambda_max, 1.0), ("ema", ema, 1.0)):
            if not 0.0 <= value <= top:
                raise ValueError(f"{name}: got {value}, want 0 <= value <= {top}")
        if not variance_scale > 0:
            raise ValueError(f"variance_scale: got {variance_scale}, want > 0")
        if initial is not None and not 0.0 <= initial <= lambda_max:
            raise ValueError(f"initial: got {initial}, want 0 <= value <= {lambda_max}")
        self.lambda_max = lambda_max
        self.ema = ema
        self.slope = slope
        self.threshold = threshold
        self.variance_scale = variance_scale
        self.register_buffer("value", None if initial is None else torch.tensor(float(initial)))

    def forward(self, rewards: torch.Tensor) -> torch.Tensor:
        """Advances the gate by one step and returns λ, 0-d float32, without a gradient.

        Args:
            rewards: [B, G] of the whole optimizer step on this rank; NaN = missing.
        """
        lam, _ = self.step(rewards)
        return lam

    @torch.no_grad()
    def step(self, rewards: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """``forward``, and what λ was made of, under the names of the released code."""
        check_rewards(rewards)
        totals = self._totals(rewards)
        # Every rank must mix alike, or their gradients belong to different losses.
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(totals)
        lam, means = self._mixed(totals)
        self.value = lam.clone()
        names = ("lambda_raw", "reward_gate", "info_gate", "reward_max", "reward_var")
        parts = {f"adaptive_{name}": mean for name, mean in zip(names, means, strict=True)}
        return lam, parts | {"adaptive_lambda": lam}

    def _totals(self, rewards: torch.Tensor) -> torch.Tensor:
        """Sums [6] over the prompts with a reward: λ_raw, gates, max R, Var R; and their number."""
        if cuda.serves(rewards):
            _, totals = cuda.group_statistics(
                rewards,
                eps=ADVANTAGE_EPS,
                sample_std=False,
                lambda_max=self.lambda_max,
                slope=self.slope,
                threshold=self.threshold,
                variance_scale=self.variance_scale,
            )
            return totals
        stats = GroupStats(*(x.to(torch.float32) for x in group_stats(rewards)))
        scored = stats.scored > 0
        reward_gate = torch.sigmoid(self.slope * (stats.max - self.threshold))
        info_gate = (stats.variance / self.variance_scale).clamp(0.0, 1.0)
        raw_each = self.lambda_max * reward_gate * info_gate
        rows = torch.stack([raw_each, reward_gate, info_gate, stats.max, stats.variance])
        sums = torch.where(scored, rows, 0.0).sum(dim=1)
        return torch.cat([sums, scored.sum().to(sums.dtype).reshape(1)])

    def _mixed(self, totals: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """λ, 0-d, and the means [5] of the sums."""
        if cuda.serves(totals):
            before = totals.new_zeros(1) if self.value is None else self.value.reshape(1)
            known = torch.full((1,), self.value is not None, device=totals.device)
            lam, means = cuda.mix(
                totals, before.to(totals), known, lambda_max=self.lambda_max, ema=self.ema
            )
            return lam.reshape(()), means
        means = totals[:-1] / totals[-1].clamp(min=1.0)
        raw = means[0]
        before = raw if self.value is None else self.value.to(raw)
        smoothed = ((1.0 - self.ema) * raw + self.ema * before).clamp(0.0, self.lambda_max)
        lam = torch.where(totals[-1] > 0, raw if self.value is None else smoothed, before)
        return lam, means

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        # `value` is absent from the state of a gate that has not moved; both are complete states.
        value = state_dict.get(prefix + "value")
        self.value = None if value is None else value.detach().clone().to(torch.float32)
