"""Several updates from one batch of rollouts, and a sampler that differs from the trainer."""

import math

import pytest
import torch
import torch.distributed as dist

from tests.ranks import run_ranks
from wavalign_fast.losses import group_advantages
from wavalign_fast.rollout import engine
from wavalign_fast.train.phases import Stopwatch
from wavalign_fast.train.policy import Policy, wrapped
from wavalign_fast.train.ranks import Ranks
from wavalign_fast.train.step import TrainStep

GROUP, CLIP, CAP = 4, 0.1, 1.25
RL = (
    "loss.policy_scope=all", "loss.mixing=1", "anchor.rows=0", f"loss.clip={CLIP}",
    "train.updates_per_rollout=3", "loss.backend=reference",
)  # fmt: skip


def ranks_here() -> Ranks:
    return Ranks(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else Ranks()


def step_of(config, task, model) -> TrainStep:
    policy = wrapped(Policy(model), config.parallel, ranks_here())
    return TrainStep(config, task, policy, None, ranks_here())


def reward(completion) -> float:
    return float(sum(token % 3 == 0 for token in completion.ids))


def taught(task):
    """The task with a reward that most groups differ in, and a model in float64."""
    task.rewards = lambda completions: list(map(reward, completions))
    model = task.load_model().double()
    with torch.no_grad():
        noise = torch.randn(model.lm_head.weight.shape, generator=torch.Generator().manual_seed(1))
        model.lm_head.weight.copy_(noise)
    return task, model


def logps(model, completion) -> torch.Tensor:
    prompt, ids = completion.example.prompt_ids, completion.ids
    logits = model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits, -1)[torch.arange(len(ids)), torch.tensor(ids)]


def loss_by_hand(model, completions, old, importance) -> torch.Tensor:
    rewards = torch.tensor(list(map(reward, completions)), dtype=torch.float64).view(-1, GROUP)
    rows = []
    for done, a, before, weight in zip(
        completions, group_advantages(rewards).flatten(), old, importance, strict=True
    ):
        ratio = (logps(model, done) - before).exp()
        surrogate = torch.minimum(ratio * a, ratio.clamp(1 - CLIP, 1 + CLIP) * a)
        rows.append(-(weight * surrogate).mean())
    return torch.stack(rows).mean()


@pytest.mark.parametrize("cap", [None, CAP])
def test_every_update_is_the_clipped_objective(toy_task, make_config, monkeypatch, cap) -> None:
    """The sampler's log-probs are off by known amounts, beyond the cap for some tokens."""
    sample = engine.sample_with_logps

    def differing(*args, **settings):
        found = sample(*args, **settings)
        return found._replace(logps=[x + torch.linspace(-0.6, 0.6, len(x)) for x in found.logps])

    monkeypatch.setattr(engine, "sample_with_logps", differing)
    task, model = taught(toy_task())
    config = make_config(*RL, *([f"loss.importance_cap={cap}"] if cap else []))
    step = step_of(config, task, model)
    batch = step.prepare(task.train_examples[:3], 1, Stopwatch())
    with torch.no_grad():
        old = [logps(model, done) for done in batch.completions]
    ones = [torch.ones_like(x) for x in old]
    gaps = [x - done.logps for x, done in zip(old, batch.completions, strict=True)]
    importance = [gap.exp().clamp(max=cap) for gap in gaps] if cap else ones
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    clipped = []
    for _ in range(3):
        result = step.backward(batch, Stopwatch())
        found = {name: p.grad for name, p in model.named_parameters()}
        model.zero_grad()
        wanted = loss_by_hand(model, batch.completions, old, importance)
        wanted.backward()
        assert result.metrics["loss/total"] == pytest.approx(wanted.item(), rel=1e-5, abs=1e-7)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-7)
        clipped.append(result.metrics["clip_ratio/low_mean"])
        clipped[-1] += result.metrics["clip_ratio/high_mean"]
        if "logp_diff/text_mean" in result.metrics:
            first = result.metrics
        optimizer.step()
        model.zero_grad()
    assert clipped[0] == 0 < clipped[1] < clipped[2]
    # Rows without an advantage are not computed, so nothing is known of them.
    rewards = torch.tensor(list(map(reward, batch.completions))).view(-1, GROUP)
    moved = (group_advantages(rewards) != 0).flatten().tolist()
    every = torch.cat([gap for gap, counts in zip(gaps, moved, strict=True) if counts])
    assert first["logp_diff/all_mean"] == pytest.approx(every.abs().mean().item(), rel=1e-5)
    k3 = (every.exp() - 1 - every).mean().item()
    assert first["sampler_kl/all"] == pytest.approx(k3, rel=1e-5)
    assert ("importance/all_truncated" in first) is (cap is not None)
    if cap:
        share = (every > math.log(cap)).double().mean().item()
        assert 0 < first["importance/all_truncated"] == pytest.approx(share)


def test_trainer_and_sampler_agree_where_they_are_the_same(train, metrics_of, tmp_path) -> None:
    """The toy's policy loss is over text alone, so nothing is known of speech."""
    train("train.updates_per_rollout=2", "loss.clip=0.2", "loss.importance_cap=2")
    for record in metrics_of(tmp_path / "run"):
        assert record["logp_diff/text_mean"] < 1e-5
        assert record["importance/text_truncated"] == 0
        assert "logp_diff/speech_mean" not in record


def updates(task, make_config, *more: str) -> list[torch.Tensor]:
    """The weights after two steps of three updates."""
    task, model = taught(task)
    config = make_config(*RL, "loss.importance_cap=2", *more)
    step = step_of(config, task, model)
    optimizer = torch.optim.AdamW(step.policy.parameters(), lr=1e-2)
    for number in (1, 2):
        batch = step.prepare(task.train_examples[:3], number, Stopwatch())
        for _ in range(3):
            step.backward(batch, Stopwatch())
            optimizer.step()
            optimizer.zero_grad()
    parameters = step.policy.parameters()
    return [p.full_tensor() if hasattr(p, "full_tensor") else p.detach() for p in parameters]


def test_two_ranks_make_the_same_updates(toy_task, make_config) -> None:
    """In micro-batches of a row, of which one rank has fewer."""
    wanted = updates(toy_task(), make_config, "train.block_tokens=1")
    for found in run_ranks(2, updates, toy_task(), make_config, "train.block_tokens=1"):
        for ours, alone in zip(found, wanted, strict=True):
            torch.testing.assert_close(ours, alone, rtol=1e-9, atol=1e-11)


def test_a_resumed_run_makes_the_same_updates(train, tmp_path) -> None:
    more = ("train.updates_per_rollout=2", "loss.clip=0.05", "loss.importance_cap=2")
    whole = train(*more, name="whole")
    train(*more, "train.steps=2", name="parts")
    parts = train(*more, name="parts")
    for ours, wanted in zip(parts.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, wanted)


def test_a_failure_between_updates_saves_no_half_step(train, tmp_path, monkeypatch) -> None:
    backward, calls = TrainStep.backward, []

    def failing(self, batch, clock):
        calls.append(batch.updates)
        if len(calls) == 4:
            raise ValueError("broken")
        return backward(self, batch, clock)

    monkeypatch.setattr(TrainStep, "backward", failing)
    with pytest.raises(ValueError, match="broken"):
        train("train.updates_per_rollout=2", "loss.clip=0.2")
    assert calls == [0, 1, 0, 1]
    assert not (tmp_path / "run" / "checkpoint").exists()
