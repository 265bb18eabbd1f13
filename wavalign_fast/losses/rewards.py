"""Rewards or advantages of rollouts: from what they may come, and what they must be."""

from typing import Any

import torch

from wavalign_fast.ops.inputs import can_be_read, check_tensor


def rewards_table(rewards: Any) -> torch.Tensor:
    """Rewards [B, G] as a floating tensor, NaN = missing.

    A nested list (``None`` = missing) or a numpy array becomes a float32 tensor on the CPU.

    Raises:
        ValueError: another shape or type.
    """
    if rewards is not None and not isinstance(rewards, torch.Tensor):
        rewards = _from_numbers(rewards)
    check_tensor("rewards", rewards)
    if rewards.dim() == 1:
        raise ValueError(
            f"rewards: got shape {tuple(rewards.shape)}, want [B, G], a row for each prompt: "
            "rewards.reshape(-1, G)"
        )
    if rewards.dim() != 2 or not rewards.is_floating_point():
        raise ValueError(
            f"rewards: got {rewards.dtype} of shape {tuple(rewards.shape)}, want floats [B, G]"
        )
    return rewards


def refuse_infinite(rewards: torch.Tensor) -> None:
    """Refuses an infinite reward, which has no advantage, if the rewards are on the CPU.

    On another device the check would wait for the device; there the loss is NaN.

    Raises:
        ValueError: names the first infinite reward.
    """
    if not can_be_read(rewards):
        return
    bad = torch.nonzero(torch.isinf(rewards))
    if bad.numel() > 0:
        prompt, rollout = (int(i) for i in bad[0])
        raise ValueError(
            f"rewards[{prompt}, {rollout}]: got {float(rewards[prompt, rollout])}, want a finite "
            "reward, or NaN for a missing one"
        )


def check_one_given(rewards: Any, advantages: Any) -> None:
    """Refuses both of them at once, and neither.

    Raises:
        ValueError: says which of the two it was.
    """
    if (rewards is None) == (advantages is None):
        seen = "neither" if rewards is None else "both"
        raise ValueError(f"rewards and advantages: got {seen}, want one of them")


def advantages_table(advantages: Any) -> torch.Tensor:
    """Advantages [N] or [B, G], without a gradient.

    Raises:
        ValueError: another shape or type; on the CPU also one that is not finite, for an advantage
            cannot be missing: that of a rollout without a reward is 0.
    """
    check_tensor("advantages", advantages)
    if advantages.dim() not in (1, 2) or not advantages.is_floating_point():
        raise ValueError(
            f"advantages: got {advantages.dtype} of shape {tuple(advantages.shape)}, want floats "
            "[N], one for each rollout, or [B, G]"
        )
    if can_be_read(advantages):
        bad = torch.nonzero(~torch.isfinite(advantages.reshape(-1)))
        if bad.numel() > 0:
            row = int(bad[0, 0])
            raise ValueError(
                f"advantages of rollout {row}: got {float(advantages.reshape(-1)[row])}, want a "
                "finite one; 0 for a rollout that has no reward"
            )
    return advantages.detach()


def _from_numbers(rewards: Any) -> torch.Tensor:
    """float32 from a nested list or an array of numbers; ``None`` becomes NaN."""

    def number(reward: Any) -> Any:
        if hasattr(reward, "tolist"):
            reward = reward.tolist()
        if isinstance(reward, list | tuple):
            return [number(each) for each in reward]
        if isinstance(reward, str | bytes):
            raise TypeError(f"{reward!r} in it")
        return float("nan") if reward is None else float(reward)

    try:
        return torch.tensor(number(rewards), dtype=torch.float32, device="cpu")
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"rewards: got a {type(rewards).__name__} ({error}), want floats [B, G]"
        ) from error
