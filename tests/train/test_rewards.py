"""What a task's reward function may return, and what happens with anything else."""

import json
import logging
import math
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from wavalign_fast.errors import UserError
from wavalign_fast.train.rewards import Rewarder
from wavalign_fast.train_command import quiet_rank

NAN, INF = math.nan, math.inf


class Task:
    """Returns the given rewards, or raises the given error."""

    def __init__(self, given):
        self.given = given

    def rewards(self, completions):
        if isinstance(self.given, BaseException):
            raise self.given
        return self.given


def rewards_of(given, count=None):
    if count is None:
        count = len(given)
    return Rewarder(Task(given))([SimpleNamespace()] * count)


@pytest.mark.parametrize(
    "given",
    [
        [1.0, 2, True, None],
        (1.0, 2.0, 1.0, NAN),
        torch.tensor([1.0, 2.0, 1.0, NAN]),
        torch.tensor([1.0, 2.0, 1.0, NAN], dtype=torch.bfloat16, requires_grad=True),
        np.array([1.0, 2.0, 1.0, NAN], dtype=np.float16),
        [np.float32(1), torch.tensor(2), np.True_, torch.tensor(NAN)],
    ],
)
def test_numbers_in_any_form_and_none_for_a_missing_one(given):
    rewards = rewards_of(given)
    assert rewards.dtype == torch.float32 and rewards.shape == (4,)
    assert rewards[:3].tolist() == [1.0, 2.0, 1.0] and rewards[3].isnan()


def test_a_generator_is_a_list():
    assert rewards_of((float(i) for i in range(3)), count=3).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "value", [NAN, INF, -INF, 1e300, -1e39, 10**400, np.float32(INF), torch.tensor(-INF)]
)
def test_a_reward_that_is_not_finite_is_a_missing_one_and_said_once(value, caplog):
    rewarder = Rewarder(Task([1.0, value, 3.0, value]))
    for _ in range(2):
        rewards = rewarder([SimpleNamespace()] * 4)
        assert rewards[[0, 2]].tolist() == [1.0, 3.0] and rewards[[1, 3]].isnan().all()
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "given for completion 1; a reward that is not finite is a missing one" in record.message


def test_it_is_said_on_a_rank_whose_warnings_are_silenced(caplog):
    package = logging.getLogger("wavalign_fast")
    try:
        with warnings.catch_warnings():
            quiet_rank()
            package.getChild("train").warning("the main rank says this too")
            rewards_of([NAN])
    finally:
        package.setLevel(logging.NOTSET)
    (record,) = caplog.records
    assert "a reward that is not finite is a missing one" in record.message


def test_none_is_a_failure_that_the_task_has_told_of(caplog):
    assert rewards_of([None, 1.0]).isnan().tolist() == [True, False]
    assert not caplog.records


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, r"None \(NoneType\) given, wanted a list of numbers"),
        (3.0, r"3.0 \(float\) given, wanted a list"),
        ("1.0", r"'1.0' \(str\) given, wanted a list"),
        ({"a": 1.0}, r"\(dict\) given, wanted a list"),
        ([1.0], "1 given for 2 completions, wanted one each"),
        ([1.0] * 3, "3 given for 2 completions"),
        ([], "0 given for 2"),
        ([1.0, "2.0"], r"'2.0' \(str\) given for completion 1, wanted a number or None"),
        ([[1.0], [2.0]], r"\[1.0\] \(list\) given for completion 0"),
        (torch.ones(2, 1), r"tensor\(\[1.\]\) \(Tensor\) given for completion 0"),
        ([1.0, [10**5000]], r"\[a number of 16610 bits\] \(list\) given for completion 1"),
        ([1.0, 1j], r"1j \(complex\) given for completion 1"),
        ([1.0, "x" * 500], r"'x{50,56}\.\.\. \(str\)"),
    ],
)
def test_anything_else_is_refused_in_one_line(given, message):
    with pytest.raises(UserError, match=f"rewards of Task: .*{message}") as error:
        rewards_of(given, count=2)
    assert "\n" not in str(error.value) and len(str(error.value)) < 200


@pytest.mark.parametrize(
    "error", [KeyError("answer"), ZeroDivisionError("division by zero"), RuntimeError("a\nb")]
)
def test_a_function_that_raises_is_named_with_the_place(error):
    with pytest.raises(UserError, match=f"rewards of Task raised {type(error).__name__}") as seen:
        rewards_of(error, count=1)
    assert "(test_rewards.py, line " in str(seen.value) and ", in rewards)" in str(seen.value)
    assert "\n" not in str(seen.value) and seen.value.__cause__ is error


@pytest.mark.parametrize("error", [UserError("no worker"), ModuleNotFoundError("x"), SystemExit])
def test_what_says_itself_what_to_do_passes(error):
    task = Task(None)
    task.rewards = lambda completions: (_ for _ in ()).throw(error)
    with pytest.raises(error if isinstance(error, type) else type(error)) as seen:
        Rewarder(task)([])
    assert "rewards of" not in str(seen.value)


@pytest.mark.parametrize("value", [INF, -INF, NAN, 1e300, None])
def test_a_run_counts_them_and_keeps_its_gate(train, toy_task, metrics_of, tmp_path, value):
    task = toy_task()
    task.rewards = lambda done: [value, 1.0, 2.0, 1.0] + [value] * 4 + [3.0, 1.0, 2.0, value]
    trainer = train(task=task)
    for record in metrics_of(tmp_path / "run"):
        assert record["reward/failed"] == 6
        assert record["reward/mean"] == pytest.approx(10 / 6)
        for name in ("gate/lambda", "loss/total", "grad_norm"):
            assert math.isfinite(record[name])
    assert 0 < float(trainer.train_step.objective.gate.value) <= 0.8
    state = torch.load(tmp_path / "run/checkpoint/training_state.pt", weights_only=True)
    assert all(bool(value.isfinite()) for value in state["objective"].values())


def test_a_step_without_any_reward_has_no_mean(train, toy_task, metrics_of, tmp_path):
    task = toy_task()
    rewards = task.rewards
    given = iter([[None] * 12, None, [math.inf] * 12, None])
    task.rewards = lambda done: next(given) or rewards(done)
    train(task=task)
    records = metrics_of(tmp_path / "run")
    for record, failed in zip(records, (12, 0, 12, 0), strict=True):
        assert record["reward/failed"] == failed
        for name in ("reward/mean", "reward/std", "frac_reward_zero_std"):
            assert (record[name] is None) == (failed > 0)  # strict JSON has no NaN
        assert math.isfinite(record["gate/lambda"]) and math.isfinite(record["loss/total"])


def test_a_step_that_fails_loses_nothing(train, toy_task, metrics_of, tmp_path):
    """The steps before it are saved, and after a fix the run continues as if undisturbed."""
    task = toy_task()
    rewards = task.rewards

    def fails_at_three(completions):
        if task.calls.get("rewards", 0) == 2:
            raise KeyError("answer")
        return rewards(completions)

    task.rewards = fails_at_three
    message = r"step 3 \(checkpoint of step 2 saved in .*checkpoint\): rewards of ToyTask raised"
    with pytest.raises(UserError, match=message):
        train("train.steps=4", name="failed", task=task)
    resumed = train("train.steps=4", name="failed")
    whole = train("train.steps=4", name="whole")
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name])
    assert [r["step"] for r in metrics_of(tmp_path / "failed")] == [1, 2, 3, 4]


def test_a_first_step_that_fails_leaves_no_checkpoint(train, toy_task, tmp_path):
    task = toy_task()
    task.rewards = lambda completions: None
    with pytest.raises(UserError, match=r"^step 1: rewards of ToyTask: None"):
        train(task=task)
    assert not (tmp_path / "run" / "checkpoint").exists()


@pytest.mark.parametrize("several", [False, True])
def test_a_completion_has_ended_whichever_end_it_wrote(train, toy_task, tmp_path, several):
    task = toy_task()
    other = 9
    task.eos_id = [task.eos_id, other] if several else task.eos_id
    seen = []
    rewards = task.rewards
    task.rewards = lambda completions: seen.extend(completions) or rewards(completions)
    train("train.steps=1", "rollout.group_size=40", task=task)
    ends = {1, other} if several else {1}
    assert {done.ids[-1] for done in seen if done.ended} == ends
    for done in seen:
        assert done.ended == (done.ids[-1] in ends)
        assert not ends & set(done.ids[:-1])
        assert done.ended or len(done.ids) == 8
    line = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0]
    clipped = sum(not done.ended for done in seen) / len(seen)
    assert 0 < clipped < 1
    assert json.loads(line)["completion_clipped"] == pytest.approx(clipped)
