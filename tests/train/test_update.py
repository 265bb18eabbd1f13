"""The update of the weights against AdamW by hand, and the seeds."""

import math
import random

import pytest
import torch

from wavalign_fast.config.schema import OptimizerConfig
from wavalign_fast.train.optimizer import build_optimizer
from wavalign_fast.train.step import TrainStep

# No value is the default. `eps` is large, because otherwise AdamW hides the scale of a gradient.
SETTINGS = (
    "optimizer.lr=0.02", "optimizer.betas=[0.7,0.8]", "optimizer.eps=0.01",
    "optimizer.weight_decay=0.3", "optimizer.clip_norm=0.5", "optimizer.warmup_steps=2",
    "optimizer.schedule=cosine", "train.steps=4",
)  # fmt: skip


def clipped(gradients: dict, limit: float) -> dict:
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    factor = 1.0 if limit == 0 else min(1.0, limit / float(norm))
    return {name: gradient * factor for name, gradient in gradients.items()}


def adamw_by_hand(weights: dict, steps: list[dict], rates: list[float], config) -> dict:
    """AdamW in float64; decay on matrices alone."""
    (first, second), eps = config.betas, config.eps
    for name in weights:
        weight, mean, square = weights[name], 0.0, 0.0
        decay = config.weight_decay if weight.ndim >= 2 else 0.0
        for t, (gradients, rate) in enumerate(zip(steps, rates, strict=True), start=1):
            gradient = gradients[name]
            mean = first * mean + (1 - first) * gradient
            square = second * square + (1 - second) * gradient**2
            scale = (square / (1 - second**t)).sqrt() + eps
            weight = weight - rate * (decay * weight + mean / (1 - first**t) / scale)
        weights[name] = weight
    return weights


@pytest.mark.parametrize("clip_norm", [0.5, 0.0])
def test_weights_move_as_adamw_by_hand_would_move_them(train, toy_task, monkeypatch, clip_norm):
    recorded = []
    call = TrainStep.backward

    def record(self, batch, clock):
        model = self.policy.model
        assert all(p.grad is None for p in model.parameters())
        metrics = call(self, batch, clock)
        recorded.append({n: p.grad.double() for n, p in model.named_parameters()})
        return metrics

    monkeypatch.setattr(TrainStep, "backward", record)
    trainer = train(*SETTINGS, f"optimizer.clip_norm={clip_norm}")
    # Names and momentum are in test_optimizers.py.
    given = {setting.partition("=")[0] for setting in SETTINGS} | {
        "optimizer.name",
        "optimizer.momentum",
    }
    assert given >= {f"optimizer.{name}" for name in OptimizerConfig.model_fields}
    rates = [0.01, 0.02, 0.02, 0.02 * 0.5 * (1 + math.cos(math.pi / 2))]
    steps = [clipped(gradients, clip_norm) for gradients in recorded]
    largest = max(torch.cat([g.flatten() for g in one.values()]).norm() for one in recorded)
    assert largest > 0.5  # clipping has something to do
    before = {n: p.detach().double() for n, p in toy_task().load_model().named_parameters()}
    wanted = adamw_by_hand(before, steps, rates, trainer.config.optimizer)
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(parameter.double(), wanted[name], rtol=1e-5, atol=1e-6)


def test_frozen_parameters_are_in_no_group():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    model[0].weight.requires_grad_(False)
    (group,) = build_optimizer(model, OptimizerConfig(weight_decay=0.5)).param_groups
    assert group["weight_decay"] == 0.0
    assert [tuple(weight.shape) for weight in group["params"]] == [(4,), (4,), (4,)]


def draws(train, task, seed: int) -> dict[str, list]:
    """Returns what a run draws from each source of chance."""
    seen: dict[str, list] = {"prompts": [], "rollouts": [], "shown": [], "torch": [], "python": []}
    demonstrate = task.demonstrations

    def rewards(completions):
        seen["prompts"].append([done.example.id for done in completions])
        seen["rollouts"].append([done.ids for done in completions])
        seen["torch"].append(torch.rand(()).item())
        seen["python"].append(random.random())
        return [0.0] * len(completions)

    def demonstrations(examples, rng):
        seen["shown"].append([pair.answer_ids for pair in demonstrate(examples, rng)])
        return demonstrate(examples, rng)

    task.rewards, task.demonstrations = rewards, demonstrations
    train(f"train.seed={seed}", "train.steps=2", name=f"seed-{seed}-{id(task)}", task=task)
    return seen


def test_every_source_of_chance_follows_the_seed(train, toy_task):
    first, again, other = (draws(train, toy_task(), seed) for seed in (3, 3, 4))
    for source in first:
        assert first[source] == again[source], source
        assert first[source] != other[source], source
        assert first[source][0] != first[source][1], source  # nor does a step repeat another
