"""The gate of the adaptive mixture: the weight λ of the policy term, from the step's rewards."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from wavalign_fast.losses.advantage import ADVANTAGE_EPS, GroupStats, group_stats
from wavalign_fast.losses.all_reduce import in_process_group, sum_over_ranks
from wavalign_fast.losses.metric_names import with_released_names
from wavalign_fast.losses.recomputation import RecomputedSteps, unseen_by_checkpointing
from wavalign_fast.losses.rewards import refuse_infinite, rewards_table
from wavalign_fast.ops import LossOptions, cuda
from wavalign_fast.ops.backends import takes_cuda_groups
from wavalign_fast.ops.inputs import can_be_read, finite_number, true_or_false
from wavalign_fast.ops.transfer import capturing

NOT_MOVED = -1.0
"""What ``state_dict`` holds for λ before the first step."""

PARTS = ("gate_raw", "gate_reward", "gate_variance", "gate_reward_max", "gate_reward_variance")
"""What is averaged over the prompts with a reward: λ_raw, its two factors, max R and Var R."""


class MixingGate(nn.Module):
    """λ of a step: high where the best rollout is good and the rollouts differ (arXiv 2604.14932).

    For each prompt ``λ_raw = λ_max · sigmoid(slope (max R - threshold)) · clip(Var R /
    variance_scale, 0, 1)``, and λ_raw of the step is the mean over the prompts with a reward, those
    of all ranks included. It is smoothed to ``λ = (1 - ema) λ_raw + ema λ_before`` and clamped to
    [0, λ_max]. The first step takes λ_raw as it is; a step without any reward leaves λ unchanged.

    An infinite reward is refused, on every rank if one has it. On a GPU, where the check would wait
    for the device, λ of that step is NaN, and so is its loss; the gate does not move.

    Activation checkpointing runs the forward pass again in the backward pass. The gate then returns
    the λ that it had returned for the same rewards, and raises if it had returned different ones.

    Args:
        lambda_max: λ_max, in [0, 1].
        ema: in [0, 1]; the part of the last step's λ in the next one.
        slope: per unit of the reward, finite.
        threshold: in units of the reward, finite. The default is the middle of a 1-5 scale.
        variance_scale: a variance of rewards, above 0. The default is the largest on a 1-5 scale.
        initial: λ of the step before, to go on from; ``None`` starts anew.

    Raises:
        ValueError: a setting outside its range; rewards that do not fit.
        RuntimeError: a recomputed step whose λ is not known any more.
    """

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
        self.lambda_max = finite_number("lambda_max", lambda_max, low=0.0, high=1.0)
        self.ema = finite_number("ema", ema, low=0.0, high=1.0)
        self.slope = finite_number("slope", slope)
        self.threshold = finite_number("threshold", threshold)
        self.variance_scale = finite_number("variance_scale", variance_scale, above=0)
        if initial is not None:
            initial = finite_number("initial", initial, low=0.0, high=self.lambda_max)
        # The buffer always exists: a checkpoint is loaded by the keys of a fresh module. It is not
        # registered, for the property below has its name.
        start = NOT_MOVED if initial is None else initial
        self._buffers["value"] = torch.tensor(start, dtype=torch.float32, device="cpu")
        # Kept on the host, for reading the buffer may be a host sync.
        self._stepped = initial is not None
        self._recomputed = RecomputedSteps()

    @property
    def value(self) -> torch.Tensor | None:
        """λ of the last step, 0-d float32; ``None`` before the first. It is in the ``state_dict``.

        On a GPU, after steps of which none had a reward, it is -1: finding out would be a host
        sync.
        """
        state = self._state
        if not self._stepped:
            self._stepped = bool(state >= 0)
        return state if self._stepped else None

    @property
    def _state(self) -> torch.Tensor:
        """λ, or ``NOT_MOVED``, 0-d float32."""
        state = self._buffers["value"]
        assert state is not None  # `__setattr__` stores NOT_MOVED for None
        return state

    def forward(
        self, rewards: torch.Tensor, options: LossOptions | None = None, *, reduce: bool = True
    ) -> torch.Tensor:
        """Advances the gate by one step and returns λ, 0-d float32, without a gradient.

        Args:
            rewards: [B, G] floats of this rank's whole optimizer step, or a nested list of numbers.
                NaN or ``None`` is a missing reward.
            options: its ``backend`` decides whether the CUDA kernels may compute this.
            reduce: sums over the ranks of a process group. ``False``: the rewards are those of all
                ranks already, the same on each, and no collective is called.

        Raises:
            ValueError: rewards that do not fit; on the CPU also an infinite one on any rank.
        """
        rl_weight, _ = self.step(rewards, options, reduce=reduce)
        return rl_weight

    @torch.no_grad()
    def step(
        self, rewards: torch.Tensor, options: LossOptions | None = None, *, reduce: bool = True
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """``forward``, and the metrics of the gate, 0-d, under the names of the released code."""
        true_or_false("reduce", reduce)
        if torch.compiler.is_compiling():
            return self._step(rewards, options, reduce)
        with unseen_by_checkpointing():
            return self._step(rewards, options, reduce)

    def _step(
        self, rewards: torch.Tensor, options: LossOptions | None, reduce: bool
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        rewards = rewards_table(rewards)
        over_ranks = reduce and in_process_group()
        if not over_ranks:
            refuse_infinite(rewards)
        if RecomputedSteps.asked():
            again: tuple[torch.Tensor, dict[str, torch.Tensor]] = self._recomputed.of(rewards)
            return again
        captured = capturing(rewards.device)
        if captured and self._state.device != rewards.device:
            raise ValueError(
                f"MixingGate: its state is on {self._state.device}, want {rewards.device} while a "
                "CUDA graph is captured: call .to() on it before"
            )
        totals = self._totals(rewards, takes_cuda_groups(rewards, options))
        if over_ranks:
            totals = _over_ranks(rewards, totals)
        before = self._state_beside(totals)
        rl_weight, means = self._mixed(totals, before, takes_cuda_groups(totals, options))
        # A NaN differs from itself, so a λ of NaN is not kept.
        value = torch.where((totals[-1] > 0) & (rl_weight == rl_weight), rl_weight, before)
        if captured:  # in place, so that each replay goes on from the last
            self._state.copy_(value)
        elif value.device.type != "meta":  # which has shapes only, no λ
            self._buffers["value"] = value
            self._stepped |= value.device.type != "cpu"
        parts = dict(zip(PARTS, means, strict=True)) | {"gate_rl_weight": rl_weight}
        result = rl_weight, with_released_names(parts)
        self._recomputed.note(rewards, rl_weight, result)
        return result

    def _totals(self, rewards: torch.Tensor, by_kernel: bool) -> torch.Tensor:
        """Sums [6] over the prompts with a reward: those of ``PARTS``, and how many prompts."""
        if by_kernel:
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
        rewarded = stats.rewarded > 0
        reward_gate = torch.sigmoid(self.slope * (stats.max - self.threshold))
        info_gate = (stats.variance / self.variance_scale).clamp(0.0, 1.0)
        raw_each = self.lambda_max * reward_gate * info_gate
        rows = torch.stack([raw_each, reward_gate, info_gate, stats.max, stats.variance])
        sums = torch.where(rewarded, rows, 0.0).sum(dim=1)
        return torch.cat([sums, rewarded.sum().to(sums.dtype).reshape(1)])

    def _state_beside(self, totals: torch.Tensor) -> torch.Tensor:
        """The state on the device of ``totals``; a fill takes it from the CPU without a copy."""
        state = self._state
        if state.device.type != "cpu" or totals.device.type == "cpu" or not can_be_read(state):
            return state.to(totals)
        return totals.new_full((), float(state))

    def _mixed(
        self, totals: torch.Tensor, before: torch.Tensor, by_kernel: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """λ, 0-d, and the means [5] over the prompts, those of ``PARTS``."""
        moved = before >= 0
        if by_kernel:
            rl_weight, means = cuda.mix(
                totals,
                previous=before.reshape(1),
                has_previous=moved.reshape(1),
                lambda_max=self.lambda_max,
                ema=self.ema,
            )
            return rl_weight.reshape(()), means
        means = totals[:-1] / totals[-1].clamp(min=1.0)
        raw = means[0]
        before = torch.where(moved, before, raw)
        smoothed = ((1.0 - self.ema) * raw + self.ema * before).clamp(0.0, self.lambda_max)
        rl_weight = torch.where(totals[-1] > 0, torch.where(moved, smoothed, raw), before)
        return rl_weight, means

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        # λ moves with the module, but stays float32 and keeps its value. On the meta device it
        # would lose it, and `to_empty` would make it arbitrary.
        state = self._state
        super()._apply(fn, recurse)
        device = self._state.device
        self._buffers["value"] = state if device.type == "meta" else state.to(device)
        return self

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        if strict:
            others = (key for key in state_dict if key.startswith(prefix))
            unexpected_keys.extend(key for key in others if key != f"{prefix}value")
        # Earlier releases left the key out of the state of a gate that had not moved.
        value = state_dict.get(f"{prefix}value", torch.full((), NOT_MOVED, device="cpu"))
        away = isinstance(value, torch.Tensor) and value.device.type != "meta"
        here = value.cpu() if away else value
        self._check_state(f"{prefix}value", here)
        self._buffers["value"] = value.detach().to(self._state.device, torch.float32, copy=True)
        self._stepped = bool(here >= 0)

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "value":
            super().__setattr__(name, value)
            return
        if value is None:
            value = torch.full((), NOT_MOVED, device="cpu")
        self._check_state("value", value)
        self._buffers["value"] = value.detach().to(torch.float32)
        self._stepped = bool(value >= 0) if can_be_read(value) else True

    def _check_state(self, name: str, value: Any) -> None:
        """Refuses a λ that no gate can have, as far as it can be read without a host sync."""
        if not isinstance(value, torch.Tensor) or value.dim() != 0:
            shape = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
            raise ValueError(f"{name}: got {shape}, want a 0-d tensor")
        if value.device.type == "meta":
            raise ValueError(f"{name}: got a tensor on meta, want one with a value")
        if not can_be_read(value):
            return
        number, limit = float(value), self.lambda_max * (1 + 1e-6)  # float32 may have rounded it up
        if number != NOT_MOVED and not 0.0 <= number <= limit:
            raise ValueError(
                f"{name}: got λ = {number}, want 0 <= value <= lambda_max = {self.lambda_max}, or "
                f"{NOT_MOVED} for a gate that has not moved"
            )


def _over_ranks(rewards: torch.Tensor, totals: torch.Tensor) -> torch.Tensor:
    """The sum of ``totals`` [6] over all ranks: with different λ they would train different losses.

    The number of infinite rewards is summed along, so that all ranks raise. If one rank raised
    before the all-reduce, the others would wait in it until its timeout.

    Raises:
        ValueError: some rank has an infinite reward, and the rewards are on the CPU.
    """
    count = float(torch.isinf(rewards).sum()) if can_be_read(rewards) else 0.0
    summed = sum_over_ranks(torch.cat([totals, totals.new_full((1,), count)]))
    infinite = summed[-1]
    if can_be_read(infinite) and infinite > 0:
        refuse_infinite(rewards)
        raise ValueError(
            f"rewards: got {int(infinite)} infinite on other ranks, want finite rewards, or NaN "
            "for missing ones"
        )
    return summed[:-1]
