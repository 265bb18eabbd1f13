"""The trainer on a toy: it learns, skips what is not needed, resumes exactly, survives NaN."""

import math
import os
import signal

import pytest
import torch
from transformers import AutoModelForCausalLM

from wavalign_fast.errors import UserError
from wavalign_fast.gpu_monitor import GpuMonitor
from wavalign_fast.rollout import engine
from wavalign_fast.train import step
from wavalign_fast.train import trainer as training
from wavalign_fast.train.phases import Stopwatch
from wavalign_fast.train.policy import Policy
from wavalign_fast.train.ranks import Ranks
from wavalign_fast.train.step import TrainStep
from wavalign_fast.train.step_batch import StepRows
from wavalign_fast.train.stop_signal import Stopped
from wavalign_fast.train.token_blocks import LossIds

CONTRACT = {
    "loss/policy",
    "loss/anchor",
    "loss/total",
    "gate/lambda",
    "reward/mean",
    "reward/std",
    "frac_reward_zero_std",
    "kl",
    "entropy",
    "grad_norm",
    "lr",
    "tokens_per_s",
    "completion_length",
    "perf/rollout_s",
    "perf/reward_s",
    "perf/forward_backward_s",
    "perf/optimizer_s",
    "perf/step_s",
    "skipped_steps",
}


def weights(trainer):
    return trainer.model.state_dict()


def same_bits(first, second):
    return all(torch.equal(first[name], second[name]) for name in {**first, **second})


def deterministic(records):
    """Returns the metrics that are not measurements of the machine."""
    timed = ("perf/", "memory/", "time_s", "tokens_per_s")
    return [{k: v for k, v in record.items() if not k.startswith(timed)} for record in records]


def test_reward_goes_up_and_anchor_loss_goes_down(train, metrics_of, tmp_path):
    train("train.steps=60", "loss.mixing=0.5", "rollout.group_size=8")
    records = metrics_of(tmp_path / "run")
    first, last = records[:5], records[-5:]

    def mean(part, name):
        return sum(record[name] for record in part) / len(part)

    assert mean(last, "reward/mean") > mean(first, "reward/mean") + 0.5
    assert mean(last, "loss/anchor") < mean(first, "loss/anchor") - 0.5


def test_every_promised_metric_is_written_every_step(train, metrics_of, tmp_path):
    train("loss.speech_kl=0.1", "loss.policy_scope=all")
    records = metrics_of(tmp_path / "run")
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    for record in records:
        assert set(record) >= CONTRACT, CONTRACT - set(record)
        assert "perf/reference_s" in record
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def test_what_the_gpu_does_is_logged_where_there_is_one(train, monkeypatch, metrics_of, tmp_path):
    train(name="cpu")
    assert not [name for name in metrics_of(tmp_path / "cpu")[0] if name.startswith("gpu/")]
    monkeypatch.setattr(GpuMonitor, "metrics", lambda self: {"gpu/power_w": 250.0})
    train(name="gpu")
    assert [record["gpu/power_w"] for record in metrics_of(tmp_path / "gpu")] == [250.0] * 4


def test_sft_samples_nothing(train, toy_task, monkeypatch, metrics_of, tmp_path):
    monkeypatch.setattr(engine, "sample_with_logps", lambda *a, **k: pytest.fail("sampled"))
    task = toy_task()
    train("loss.mixing=0", "loss.speech_kl=1", task=task)
    assert "rewards" not in task.calls
    record = metrics_of(tmp_path / "run")[0]
    assert not {"perf/rollout_s", "reward/mean", "loss/policy", "completion_length"} & set(record)


def test_rl_asks_for_no_demonstrations(train, toy_task, metrics_of, tmp_path):
    task = toy_task()
    train("loss.mixing=1", task=task)
    train("anchor.rows=0", task=task, name="adaptive")
    assert "demonstrations" not in task.calls
    assert "loss/anchor" not in metrics_of(tmp_path / "run")[0]


@pytest.mark.parametrize(
    ("overrides", "copies"), [([], 0), (["loss.text_kl=0.1"], 1), (["loss.mixing=0"], 0)]
)
def test_a_reference_is_held_only_for_a_kl(train, monkeypatch, overrides, copies):
    made = []
    frozen_copy = training.frozen_copy
    monkeypatch.setattr(training, "frozen_copy", lambda *a: made.append(a) or frozen_copy(*a))
    train("train.steps=1", *overrides)
    assert len(made) == copies


def test_kl_of_its_own_samples_even_without_a_policy_weight(train, metrics_of, tmp_path):
    train("loss.mixing=0", "loss.kl_scope=completion", "loss.speech_kl=1")
    assert "perf/rollout_s" in metrics_of(tmp_path / "run")[0]


def test_the_kl_starts_at_zero(train, metrics_of, tmp_path):
    train("loss.text_kl=1", "loss.speech_kl=1", "loss.policy_scope=all", "rollout.temperature=0.7")
    first, *_, last = metrics_of(tmp_path / "run")
    assert abs(first["kl"]) < 1e-6 < last["kl"]


@pytest.mark.parametrize("normalisation", ["sequence", "token"])
@pytest.mark.parametrize("scope", ["all", "text", "speech"])
def test_what_cannot_matter_is_left_out_exactly(
    toy_task, make_config, monkeypatch, scope, normalisation
):
    """Leaving out equal-reward groups and the tails of rows changes neither loss nor gradient."""

    def gradients(skip: bool):
        if not skip:
            monkeypatch.setattr(StepRows, "_without_gradient", lambda self, rewards: frozenset())
            everything = [True] * toy_task().layout.vocab_size
            monkeypatch.setattr(step, "find_loss_ids", lambda *_: LossIds(everything, everything))
        task = toy_task(broken_judge=True)
        task.rewards = lambda done: [None, 1.0, 2.0, 0.0] + [3.0] * 4 + [1.0, 1.0, 1.0, 0.0]
        model = task.load_model()
        hybrid = TrainStep(
            make_config(
                f"loss.policy_scope={scope}",
                f"loss.anchor_scope={scope}",
                f"loss.normalisation={normalisation}",
            ),
            task,
            Policy(model),
            None,
            Ranks(),
        )
        clock = Stopwatch()
        batch = hybrid.prepare(task.train_examples[:4], 1, clock)
        metrics = hybrid.backward(batch, clock).metrics
        return metrics, [weight.grad for weight in model.parameters()]

    skipped, skipped_grads = gradients(skip=True)
    full, full_grads = gradients(skip=False)
    for name in ("loss/policy", "loss/anchor", "loss/total", "gate/lambda", "reward/mean"):
        assert skipped[name] == pytest.approx(full[name], rel=1e-6, abs=1e-7)
    for ours, wanted in zip(skipped_grads, full_grads, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("extra", [[], ["loss.mixing=0"], ["anchor.rows=0", "loss.text_kl=0.1"]])
def test_resumed_equals_uninterrupted_bit_for_bit(train, metrics_of, tmp_path, extra):
    whole = train("train.steps=6", *extra, name="whole")
    train("train.steps=3", *extra, name="parts")
    resumed = train("train.steps=6", *extra, name="parts")
    assert same_bits(weights(whole), weights(resumed))
    assert deterministic(metrics_of(tmp_path / "whole")) == deterministic(
        metrics_of(tmp_path / "parts")
    )
    assert resumed.sampler.consumed == whole.sampler.consumed


def test_resume_from_an_earlier_checkpoint_drops_later_metrics(train, metrics_of, tmp_path):
    whole = train("train.steps=5", name="whole")
    train("train.steps=3", name="parts")
    lines = (tmp_path / "whole" / "metrics.jsonl").read_text()
    # As after a kill between two checkpoints: more metrics than steps, and a cut last line.
    (tmp_path / "parts" / "metrics.jsonl").write_text(lines[: lines.rindex('"lr"')])
    resumed = train("train.steps=5", name="parts")
    assert [record["step"] for record in metrics_of(tmp_path / "parts")] == [1, 2, 3, 4, 5]
    assert same_bits(weights(whole), weights(resumed))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_a_loadable_checkpoint_and_resumes_exactly(
    train, toy_task, tmp_path, number
):
    task = toy_task()
    rewards = task.rewards

    def interrupted(completions):
        if task.calls.get("rewards", 0) == 1:
            os.kill(os.getpid(), number)
        return rewards(completions)

    task.rewards = interrupted
    with pytest.raises(Stopped, match=f"stopped by {number.name} after step 2") as stopped:
        train("train.steps=5", name="stopped", task=task)
    assert stopped.value.signal_number == number
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "stopped" / "checkpoint")
    assert model.config.vocab_size == task.layout.vocab_size
    resumed = train("train.steps=5", name="stopped")
    whole = train("train.steps=5", name="whole")
    assert same_bits(weights(resumed), weights(whole))


def poison(monkeypatch, poisoned_steps):
    """Makes the gradient NaN in some steps, as an overflow does."""
    call = TrainStep.backward
    seen = []

    def poisoned(self, batch, clock):
        metrics = call(self, batch, clock)
        seen.append(None)
        if len(seen) in poisoned_steps:
            next(self.policy.parameters()).grad[0, 0] = math.nan
        return metrics

    monkeypatch.setattr(TrainStep, "backward", poisoned)


def test_a_non_finite_gradient_skips_the_step(train, monkeypatch, metrics_of, tmp_path):
    poison(monkeypatch, {2, 3})
    trainer = train("train.max_nonfinite_steps=3")
    assert all(torch.isfinite(weight).all() for weight in weights(trainer).values())
    records = metrics_of(tmp_path / "run")
    assert [record["skipped_steps"] for record in records] == [0, 1, 2, 2]
    assert records[1]["grad_norm"] is None  # strict JSON has no NaN


def test_too_many_non_finite_steps_stop_with_the_reason(train, monkeypatch, tmp_path):
    poison(monkeypatch, {2, 3, 4})
    with pytest.raises(UserError, match=r"step 3: .*not finite 2 steps in a row") as error:
        train("train.max_nonfinite_steps=2")
    assert "\n" not in str(error.value)
    AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "checkpoint")


def test_steps_in_a_row_are_counted_across_a_restart(train, monkeypatch):
    poison(monkeypatch, {3, 4})
    train("train.steps=3", "train.max_nonfinite_steps=2")
    with pytest.raises(UserError, match=r"step 4: .*not finite 2 steps in a row"):
        train("train.steps=5", "train.max_nonfinite_steps=2")


def test_checkpoints_come_as_often_as_asked(train, monkeypatch):
    saved = []
    save = training.Trainer.save
    monkeypatch.setattr(
        training.Trainer, "save", lambda self: saved.append(self.step) or save(self)
    )
    train("train.steps=5", "train.checkpoint_every=2")
    train("train.steps=4", "train.checkpoint_every=2", name="even")
    train("train.steps=3", "train.checkpoint_every=0", name="none")
    assert saved == [2, 4, 5, 2, 4, 3]


def test_a_signal_in_the_last_step_still_counts(train, toy_task, tmp_path):
    task = toy_task()
    rewards = task.rewards
    task.rewards = lambda done: signal.raise_signal(signal.SIGTERM) or rewards(done)
    with pytest.raises(Stopped, match="stopped by SIGTERM after step 1"):
        train("train.steps=1", task=task)
    assert (tmp_path / "run/checkpoint/training_state.pt").is_file()


@pytest.mark.parametrize("step", [1, 2])
def test_a_signal_while_a_checkpoint_is_saved_stops_after_it(train, monkeypatch, step):
    save = training.Trainer.save

    def signalled(self):
        if self.step == step:
            signal.raise_signal(signal.SIGTERM)
        save(self)

    monkeypatch.setattr(training.Trainer, "save", signalled)
    with pytest.raises(Stopped, match=f"stopped by SIGTERM after step {step};"):
        train("train.steps=2", "train.checkpoint_every=1")


def test_a_failed_judge_is_a_missing_reward(train, toy_task, metrics_of, tmp_path):
    train(task=toy_task(broken_judge=True))
    for record in metrics_of(tmp_path / "run"):
        assert math.isfinite(record["loss/total"]) and math.isfinite(record["reward/mean"])


def test_a_group_without_any_reward_does_not_lower_the_mean(train, toy_task, metrics_of, tmp_path):
    task = toy_task()
    task.rewards = lambda completions: [None] * 4 + [3.0] * 4 + [1.0, 2.0, 1.0, 2.0]
    train(task=task)
    record = metrics_of(tmp_path / "run")[0]
    assert (record["reward/mean"], record["reward/failed"]) == (2.25, 4)


def test_too_few_rewards_are_refused(train, toy_task):
    task = toy_task()
    task.rewards = lambda completions: [1.0]
    with pytest.raises(UserError, match="1 given for 12 completions"):
        train(task=task)


def test_a_checkpoint_of_another_model_is_refused(train, toy_task):
    train("train.steps=1")
    with pytest.raises(UserError, match=r"another model: .* is \(24, 16\), wanted \(24, 32\)"):
        train(task=toy_task(hidden=32))


def test_a_layout_of_another_vocabulary_is_refused(train, toy_task):
    task = toy_task()
    task.layout = type(task.layout)(vocab_size=25, speech=((12, 22),))
    with pytest.raises(UserError, match="24 rows in the head, wanted 25"):
        train(task=task)
