"""What a provider is, and the losses that trainers write on top of log-probabilities."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE_INDEX = -100
ADVANTAGE_EPS = 1e-4


class Unsupported(Exception):
    """A provider has no such function, or not with these options."""


@dataclass(frozen=True, kw_only=True)
class Calls:
    """A provider's functions; ``None`` where it has none that takes hidden states.

    logp: hidden [N, H], weight [V, H], targets [N], bias [V] or ``None`` -> log-probs [N];
        differentiable.
    logp_entropy: the same arguments -> (log-probs [N], entropies [N] in nats); differentiable.
    ce: the same arguments -> mean of ``-log p`` over the targets that are not -100.
    grpo: hidden [B, T, H], weight [V, H], ids [B, T] (position t's state predicts ``ids[:, t]``),
        mask [B, T] floats, rewards [P, G] with P * G = B (row p * G + g is rollout g of prompt p),
        keywords ``old_logp`` [B, T] or ``None`` (the policy itself) and ``clip`` (0.2) -> the mean
        over rows of the masked token mean of ``-min(ρA, clip(ρ)A)``.
    dpo: hidden [2P, T, H] (the chosen rows, then the rejected ones), weight, ids [2P, T],
        mask [2P, T], keywords ``ref_logp`` [2P] summed over the same tokens or ``None`` (no
        reference), ``beta`` (0.1) -> mean over pairs of ``-log sigmoid(β margin)``.
    """

    logp: Callable[..., Tensor]
    logp_entropy: Callable[..., tuple[Tensor, Tensor]] | None = None
    ce: Callable[..., Tensor] | None = None
    grpo: Callable[..., Tensor] | None = None
    dpo: Callable[..., Tensor] | None = None


@dataclass(frozen=True, kw_only=True)
class Provider:
    name: str
    """Key in result files and on the command line."""
    device: str | None
    """The device type it is for, "cpu" or "cuda"; ``None``: both."""
    label: str
    """What a table shows."""
    runs: str
    """Which of its implementations runs."""
    requirement: str | None
    """The pinned distribution, as in ``rivals.txt``; ``None``: torch, or ourselves."""
    load: Callable[[], Calls]
    """Imports it. Raises ``ImportError`` or ``RuntimeError`` with the reason if it cannot run."""

    def serves(self, device: str) -> bool:
        return self.device in (None, device)


def group_advantages(rewards: Tensor) -> Tensor:
    """``(R - mean) / (std + 1e-4)`` with the population's std over each row of [P, G], [P * G]."""
    spread = rewards.std(dim=1, correction=0, keepdim=True)
    return ((rewards - rewards.mean(dim=1, keepdim=True)) / (spread + ADVANTAGE_EPS)).flatten()


def grpo_from(logp: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The policy loss as trainers write it on [B, T] log-probs."""

    def grpo(
        hidden: Tensor, weight: Tensor, ids: Tensor, mask: Tensor, rewards: Tensor,
        *, old_logp: Tensor | None = None, clip: float = 0.2,
    ) -> Tensor:  # fmt: skip
        now = logp(hidden.flatten(0, 1), weight, ids.flatten()).view(ids.shape)
        ratio = torch.exp(now - (now.detach() if old_logp is None else old_logp))
        advantage = group_advantages(rewards).unsqueeze(1)
        surrogate = torch.min(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
        return -((surrogate * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()

    return grpo


def dpo_from(logp: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The preference loss as trainers write it on [2P, T] log-probs."""

    def dpo(
        hidden: Tensor, weight: Tensor, ids: Tensor, mask: Tensor,
        *, ref_logp: Tensor | None = None, beta: float = 0.1,
    ) -> Tensor:  # fmt: skip
        per_token = logp(hidden.flatten(0, 1), weight, ids.flatten()).view(ids.shape)
        rewards = (per_token * mask).sum(1)
        if ref_logp is not None:
            rewards = rewards - ref_logp
        chosen, rejected = rewards.chunk(2)
        return -F.logsigmoid(beta * (chosen - rejected)).mean()

    return dpo
