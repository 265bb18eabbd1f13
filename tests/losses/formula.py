"""The objective written out token by token in float64, and random batches to compare it on."""

import math
import random

import torch

import wavalign_fast as wf

V, H = 24, 6
LAYOUT = wf.ModalityLayout(vocab_size=V, speech=((12, 22),), boundary=(3, 4), eos=(5,))
DEFAULTS = {
    "policy_scope": "text", "anchor_scope": "all", "text_weight": 1.0, "speech_weight": 1.0,
    "anchor_text_weight": 1.0, "anchor_speech_weight": 1.0, "text_kl": 0.0, "speech_kl": 0.0,
    "kl_scope": "policy", "clip": None, "importance_sampling_level": "token",
    "normalisation": "sequence",
}  # fmt: skip
CONTINUED = math.exp(20.0)


def random_batch(
    rng: random.Random,
    prompts: int,
    group: int,
    anchors: int,
    *,
    reference: bool,
    old: bool,
    importance: bool = False,
) -> tuple[wf.HybridBatch, torch.Tensor, torch.Tensor]:
    """A batch, hidden states [T, H] and a head [V, H]; rows of 0 to 8 tokens with gaps between."""
    policy, anchor = [], []
    for row in range(prompts * group):
        length = rng.randrange(0, 9)
        policy += [-1] * rng.randrange(3) + [row] * length
        anchor += [-1] * (len(policy) - len(anchor))
    for row in range(anchors):
        length = rng.randrange(0, 9)
        anchor += [row] * length
        policy += [-1] * length
    t = len(policy)
    g = torch.Generator().manual_seed(rng.randrange(2**31))
    rewards = torch.randint(1, 6, (prompts, group), generator=g).float()
    batch = wf.HybridBatch(
        torch.randint(0, V, (t,), generator=g),
        torch.tensor(policy, dtype=torch.long),
        torch.tensor(anchor, dtype=torch.long),
        rewards,
        -3 * torch.rand(t, generator=g) if reference else None,
        -3 * torch.rand(t, generator=g) if old else None,
        2 * torch.rand(t, generator=g) if importance else None,
    )
    hidden = torch.randn(t, H, generator=g, dtype=torch.float64)
    return batch, hidden, torch.randn(V, H, generator=g, dtype=torch.float64)


def grown(x: torch.Tensor) -> torch.Tensor:
    """e^x up to 20 nats, its tangent beyond."""
    return x.exp() if x <= 20 else CONTINUED * (1 + x - 20)


def mean(rows: list[tuple[list, list[float]]], level: str, count: int) -> torch.Tensor:
    """Mean of (terms, weights) per row: of ``count`` row means, or over all tokens alike."""
    zero = torch.zeros((), dtype=torch.float64)
    sums = [
        sum((w * x for x, w in zip(terms, weights, strict=True) if w > 0), zero)
        for terms, weights in rows
    ]
    masses = [sum(weights) for _, weights in rows]
    if level == "token":
        return sum(sums, zero) / (sum(masses) or 1.0)
    return sum((s / max(m, 1e-6) for s, m in zip(sums, masses, strict=True)), zero) / (count or 1)


class Formula:
    """The terms of one batch; `config` holds arguments of `HybridObjective`."""

    def __init__(self, batch: wf.HybridBatch, hidden, weight, config: dict) -> None:
        self.batch, self.config = batch, DEFAULTS | config
        table = torch.log_softmax(hidden @ weight.T, -1)
        self.logp = table[torch.arange(len(table)), batch.targets]
        self.speech = LAYOUT.classify(batch.targets).tolist()

    def loss(self, rl_weight: float) -> torch.Tensor:
        policy, kl = self.policy_and_kl()
        return rl_weight * policy + (1 - rl_weight) * self.anchor() + kl

    def weights(self, kind: str, tokens: list[int]) -> list[float]:
        prefix, scope = {"policy": "", "anchor": "anchor_"}[kind], self.config[f"{kind}_scope"]
        names = ["speech" if self.speech[t] else "text" for t in tokens]
        return [self.config[f"{prefix}{n}_weight"] * (scope in ("all", n)) for n in names]

    def ratios(self, tokens: list[int], weights: list[float]) -> list[torch.Tensor]:
        old = self.logp.detach() if self.batch.old_logp is None else self.batch.old_logp.double()
        gaps = [self.logp[t] - old[t] for t in tokens]
        if self.config["importance_sampling_level"] == "sequence" and sum(weights) > 0:
            total = sum(w * gap for gap, w in zip(gaps, weights, strict=True) if w > 0)
            gaps = [total / sum(weights)] * len(tokens)
        return [grown(gap) for gap in gaps]

    def surrogate(self, ratio: torch.Tensor, advantage: float) -> torch.Tensor:
        if self.config["clip"] is None:
            return ratio * advantage
        low, high = self.config["clip"]
        if (advantage > 0 and ratio > 1 + high) or (advantage < 0 and ratio < 1 - low):
            bound = 1 + high if advantage > 0 else 1 - low
            return torch.tensor(bound * advantage, dtype=torch.float64)
        return ratio * advantage

    def kl(self, t: int) -> torch.Tensor:
        beta = self.config["speech_kl" if self.speech[t] else "text_kl"]
        if beta == 0:
            return torch.zeros((), dtype=torch.float64)
        gap = self.batch.ref_logp[t].double() - self.logp[t]
        return beta * (grown(gap) - gap - 1)

    def policy_and_kl(self) -> tuple[torch.Tensor, torch.Tensor]:
        advantages = wf.group_advantages(self.batch.rewards).flatten().tolist()
        own = self.config["kl_scope"] == "completion"
        policy, kl = [], []
        for row, advantage in enumerate(advantages):
            tokens = torch.nonzero(self.batch.policy_row == row).flatten().tolist()
            weights = self.weights("policy", tokens)
            terms = [-self.surrogate(r, advantage) for r in self.ratios(tokens, weights)]
            if self.batch.importance is not None:
                factors = self.batch.importance.double()[tokens]
                terms = [x * factor for x, factor in zip(terms, factors, strict=True)]
            kls = [self.kl(t) for t in tokens]
            if not own:
                terms = [s + k for s, k in zip(terms, kls, strict=True)]
            policy.append((terms, weights))
            kl.append((kls if own else [], [1.0] * len(tokens) if own else []))
        level, count = self.config["normalisation"], len(advantages)
        return mean(policy, level, count), mean(kl, level, count)

    def anchor(self) -> torch.Tensor:
        rows = []
        for row in sorted(set(self.batch.anchor_row.tolist()) - {-1}):
            tokens = torch.nonzero(self.batch.anchor_row == row).flatten().tolist()
            weights = self.weights("anchor", tokens)
            if sum(weights) > 0:
                rows.append(([-self.logp[t] for t in tokens], weights))
        return mean(rows, self.config["normalisation"], len(rows))
