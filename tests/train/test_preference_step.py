"""DPO in the trainer: the loss by hand, where the pairs come from, ranks and resumption."""

import json

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from tests.ranks import run_ranks
from wavalign_fast.config.dpo import DPOConfig
from wavalign_fast.data.records import Preference
from wavalign_fast.errors import UserError
from wavalign_fast.losses import SPEECH
from wavalign_fast.models import frozen_copy, has_lora
from wavalign_fast.rollout import engine
from wavalign_fast.train import pairs as pairs_module
from wavalign_fast.train.model_setup import prepare_model
from wavalign_fast.train.pairs import offline_pairs
from wavalign_fast.train.phases import Stopwatch
from wavalign_fast.train.policy import Policy, WithoutLora, wrapped
from wavalign_fast.train.preference_step import PreferenceStep
from wavalign_fast.train.ranks import Ranks

DPO = ("method=dpo", "dpo.pairs=offline", "loss.backend=reference")
WANTED = 7


def pair(number: int, example: str | None = None) -> Preference:
    """Answers of text and speech with different lengths; pair 4 has no text on one side."""
    text = () if number == 4 else (WANTED, 8)
    return Preference(
        prompt_ids=(2, *[3] * (number % 3)),
        chosen_ids=(*text, *range(12, 14 + number % 2), 1),
        rejected_ids=(9 - number % 2, 13, 9, 14),
        example_id=example,
    )


PAIRS = [pair(number) for number in range(6)]


def ranks_here() -> Ranks:
    return Ranks(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else Ranks()


def step_of(config, task, dtype=torch.float64) -> PreferenceStep:
    """A step whose policy has moved away from its reference."""
    base = task.load_model().to(dtype)
    model = prepare_model(frozen_copy(base).requires_grad_(True), config.model)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += 0.1 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
    ranks = ranks_here()
    policy = wrapped(Policy(model), config.parallel, ranks)
    reference = WithoutLora(policy)
    if not has_lora(model):
        reference = wrapped(Policy(base), config.parallel, ranks)
    return PreferenceStep(config, task, policy, reference, ranks, offline_pairs(config.dpo, task))


def answer_logp(step, model, prompt, answer) -> torch.Tensor:
    """Sum or mean of the log-probs of the ids in scope."""
    logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
    logp = torch.log_softmax(logits, -1)[torch.arange(len(answer)), torch.tensor(answer)]
    speech = step.task.layout.classify(torch.tensor(answer)) == SPEECH
    scope = step.config.dpo.scope
    mask = {"all": speech | ~speech, "speech": speech, "text": ~speech}[scope]
    total = logp[mask].sum()
    return total / mask.sum() if step.config.dpo.length_normalised else total


def loss_by_hand(step, pairs) -> torch.Tensor:
    margins = []
    for one in pairs:
        gaps = [
            answer_logp(step, model, one.prompt_ids, one.chosen_ids)
            - answer_logp(step, model, one.prompt_ids, one.rejected_ids)
            for model in (step.policy.model, step.reference.model)
        ]
        margins.append(gaps[0] - gaps[1].detach())
    return -F.logsigmoid(step.config.dpo.beta * torch.stack(margins)).mean()


@pytest.mark.parametrize(
    "overrides",
    [
        ("dpo.scope=all", "dpo.beta=0.3"),
        ("dpo.scope=speech", "train.block_tokens=1"),
        ("dpo.scope=text", "dpo.length_normalised=true"),
    ],
)
def test_a_step_is_the_formula(toy_task, make_config, overrides) -> None:
    task = toy_task()
    task.preferences = PAIRS
    step = step_of(make_config(*DPO, *overrides, "rollout.prompts=6"), task)
    batch = step.prepare(step.data, 1, Stopwatch())
    used = PAIRS if "dpo.scope=text" not in overrides else PAIRS[:4] + PAIRS[5:]
    for _ in range(2):  # a second update from the same pairs is the same function
        found = step.backward(batch, Stopwatch()).metrics
        grads = {name: p.grad for name, p in step.policy.model.named_parameters()}
        step.policy.zero_grad()
        wanted = loss_by_hand(step, used)
        wanted.backward()
        assert found["loss/total"] == pytest.approx(wanted.item(), rel=1e-9)
        for name, parameter in step.policy.model.named_parameters():
            torch.testing.assert_close(grads[name], parameter.grad, rtol=1e-7, atol=1e-12)
        step.policy.zero_grad()
    assert found["pairs/used"] == len(used) and found["pairs/out_of_scope"] == 6 - len(used)
    assert found["rewards/margins"] == pytest.approx(
        found["rewards/chosen"] - found["rewards/rejected"]
    )


def gradients(task, config) -> tuple[float, list[torch.Tensor]]:
    task.preferences = PAIRS
    step = step_of(config, task)
    result = step.backward(step.prepare(PAIRS[:5], 1, Stopwatch()), Stopwatch())
    grads = [p.grad for p in step.policy.parameters() if p.requires_grad]
    whole = [g.full_tensor() if hasattr(g, "full_tensor") else g for g in grads]
    return result.metrics["loss/total"], whole


@pytest.mark.parametrize(
    "key", ["parallel.head=gathered", "parallel.head=sharded", "model.lora.rank=2"]
)
def test_two_ranks_have_the_gradients_of_one(toy_task, make_config, key) -> None:
    """Of five pairs one rank has fewer micro-batches, and runs an idle one."""
    config = make_config(*DPO, "dpo.scope=speech", "rollout.prompts=5", "train.block_tokens=1", key)
    loss, wanted = gradients(toy_task(), config)
    assert all(grad.abs().max() > 0 for grad in wanted)
    # Adapters are float32.
    close = dict(rtol=1e-4, atol=1e-6) if "lora" in key else dict(rtol=1e-9, atol=1e-12)
    for other, found in run_ranks(2, gradients, toy_task(), config):
        assert other == pytest.approx(loss, rel=close["rtol"] / 1000)
        for ours, alone in zip(found, wanted, strict=True):
            torch.testing.assert_close(ours, alone, **close)


def test_online_pairs_teach_what_the_reward_prefers(train, metrics_of, tmp_path) -> None:
    train(
        "method=dpo", "dpo.pairs=online", "dpo.min_gap=1", "dpo.beta=0.5", "train.steps=25",
        "rollout.prompts=6", "rollout.group_size=6",
    )  # fmt: skip
    records = metrics_of(tmp_path / "run")
    first, last = records[:8], records[-8:]

    def mean(some, name):
        values = [record[name] for record in some if record.get(name) is not None]
        return sum(values) / len(values)

    assert mean(last, "reward/mean") > mean(first, "reward/mean") + 0.3
    assert mean(last, "rewards/accuracies") > 0.8
    assert all(record["pairs/online"] <= 6 for record in records)


def test_demonstrations_beat_rollouts_without_a_reward(train, toy_task, metrics_of, tmp_path):
    task = toy_task()
    train("method=dpo", "dpo.pairs=online", "dpo.chosen=demonstration", "dpo.scope=all", task=task)
    assert "rewards" not in task.calls and task.calls["demonstrations"] == 4
    for record in metrics_of(tmp_path / "run"):
        # A rollout that is the demonstration itself makes no pair.
        assert 10 <= record["pairs/online"] <= 12 and "reward/mean" not in record


def test_auto_samples_only_for_prompts_without_a_pair(
    train, toy_task, metrics_of, tmp_path, monkeypatch
) -> None:
    sampled, sample = [], engine.sample_with_logps

    def record(model, prompts, **rest):
        sampled.append(len(prompts))
        return sample(model, prompts, **rest)

    monkeypatch.setattr(engine, "sample_with_logps", record)
    lines = tmp_path / "pairs.jsonl"
    lines.write_text(
        "\n".join(
            json.dumps({"id": str(n), "prompt_ids": [2, 4], "chosen_ids": [7], "rejected_ids": [8]})
            for n in range(0, 10, 2)
        )
    )
    task = toy_task()
    train("method=dpo", f"dpo.file={lines}", "rollout.prompts=10", "dpo.min_gap=0", task=task)
    assert sampled == [5] * 4
    assert [record["pairs/offline"] for record in metrics_of(tmp_path / "run")] == [5] * 4


@pytest.mark.usefixtures("toy_recipe", "no_report")
def test_a_command_reads_the_pairs_once(in_tmp_path, train_toy, monkeypatch) -> None:
    read, files = pairs_module.read_preferences, []

    def counted(file, **rest):
        files.append(file)
        return read(file, **rest)

    monkeypatch.setattr(pairs_module, "read_preferences", counted)
    pair = {"prompt_ids": [2, 4], "chosen_ids": [7], "rejected_ids": [8]}
    (in_tmp_path / "pairs.jsonl").write_text(json.dumps(pair))
    words = ("method=dpo", "dpo.pairs=offline", "dpo.file=pairs.jsonl", "rollout.prompts=1")
    assert train_toy(*words, "train.steps=1", "train.eval_items=0") == 0
    assert [str(file) for file in files] == ["pairs.jsonl"]


def test_a_step_without_a_pair_moves_nothing(train, toy_task) -> None:
    task = toy_task()
    task.rewards = lambda completions: [1.0] * len(completions)
    before = [weight.clone() for weight in task.load_model().parameters()]
    trainer = train("method=dpo", "dpo.pairs=online", "optimizer.weight_decay=1", task=task)
    for now, was in zip(trainer.model.parameters(), before, strict=True):
        assert torch.equal(now, was)


def test_a_resumed_run_is_the_uninterrupted_one(train, toy_task) -> None:
    def task():
        made = toy_task()
        made.preferences = [pair(n, str(n % 4)) for n in range(6)]
        return made

    more = ("method=dpo", "dpo.min_gap=1")
    whole = train(*more, name="whole", task=task())
    train(*more, "train.steps=2", name="parts", task=task())
    parts = train(*more, name="parts", task=task())
    for ours, wanted in zip(parts.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, wanted)


def test_pairs_that_cannot_be_used_are_refused(make_config, toy_task, tmp_path) -> None:
    def of(*overrides):
        return offline_pairs(make_config("method=dpo", *overrides).dpo, task)

    task = toy_task()
    with pytest.raises(UserError, match=r"dpo.pairs: offline given, wanted pairs in dpo.file or"):
        of("dpo.pairs=offline")
    task.preferences = PAIRS
    with pytest.raises(UserError, match=r"dpo.pairs: auto given, and none of 6 offline pairs has"):
        of("dpo.pairs=auto")
    assert of("dpo.pairs=offline") == PAIRS and of("dpo.pairs=online") == []
    with pytest.raises(UserError, match=r"dpo.file: .*nowhere"):
        of(f"dpo.file={tmp_path / 'nowhere'}")
    tested = {"pairs", "file", "chosen", "min_gap", "scope", "beta", "length_normalised"}
    assert tested == set(DPOConfig.model_fields)
