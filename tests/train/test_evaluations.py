"""Evaluations during training: when, which is the best, where it is kept, and the early stop."""

import math

import pytest
import torch

from tests.ranks import run_ranks
from wavalign_fast.data.records import Evaluation
from wavalign_fast.errors import UserError
from wavalign_fast.train.evaluation_schedule import EvaluationSchedule
from wavalign_fast.train.owned_files import checkpoint_contents
from wavalign_fast.train.ranks import Ranks
from wavalign_fast.train.trainer import Trainer

BEST = ("train.eval_every=2", "train.keep_best=score", "train.steps=8")


@pytest.mark.parametrize(
    ("best_is", "scores", "best", "worse"),
    [
        ("highest", [1.0, 3.0, 2.0], 2, 1),
        ("lowest", [3.0, 1.0, 2.0, 1.5], 2, 2),
        # Of equal ones the first is the best, and a NaN is worse than any.
        ("highest", [1.0, 1.0], 1, 1),
        ("highest", [math.nan, -5.0, math.nan], 2, 1),
        ("lowest", [math.nan], None, 1),
    ],
)
def test_the_best_evaluation(best_is, scores, best, worse) -> None:
    schedule = EvaluationSchedule(every=1, metric="score", best_is=best_is, patience=2)
    for step, score in enumerate(scores, start=1):
        schedule.record(step, {"score": score, "other": 0.0})
    assert (schedule.best_step, schedule.worse) == (best, worse)
    assert schedule.best == (None if best is None else scores[best - 1])
    assert schedule.stops is (worse >= 2)
    again = EvaluationSchedule(every=1, metric="score", best_is=best_is, patience=2)
    again.load_state_dict(schedule.state_dict())
    assert again == schedule


def test_when_it_is_due() -> None:
    every = EvaluationSchedule(every=3)
    assert [step for step in range(1, 10) if every.due(step)] == [3, 6, 9]
    assert not any(EvaluationSchedule(every=0).due(step) for step in range(1, 10))
    every.record(3, {})  # without a metric to compare by nothing is the best
    assert every.best_step is None and not every.stops


@pytest.mark.usefixtures("toy_recipe", "no_report", "in_tmp_path")
def test_a_metric_that_the_evaluation_does_not_have_is_refused_before_training(
    refused, toy_task, monkeypatch
) -> None:
    monkeypatch.setattr(
        toy_task, "evaluate", lambda *_, **__: Evaluation(metrics={"accuracy": 0.5, "wer": 0.1})
    )
    monkeypatch.setattr(Trainer, "fit", None)
    line = refused("train.keep_best=acuracy", "train.eval_every=1")
    wanted = "wanted a metric of the evaluation: accuracy, wer; did you mean accuracy?"
    assert f"train.keep_best: 'acuracy' given, {wanted}" in line


def test_an_evaluation_whose_judge_failed_is_not_the_best_and_ends_no_run() -> None:
    schedule = EvaluationSchedule(every=1, metric="reward", best_is="lowest", patience=2)
    for step, metrics in enumerate([{}, {"reward": 0.5}, {"reward_failed": 4.0}], start=1):
        schedule.record(step, metrics)
    assert (schedule.best_step, schedule.best, schedule.worse) == (2, 0.5, 1)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.eval_every=2", "train.eval_items=0"], "eval_every 2 with eval_items 0"),
        (["train.keep_best=a"], "keep_best a with eval_every 0"),
        (["train.eval_every=2", "train.early_stop=1"], "early_stop 1 without keep_best"),
    ],
)
def test_keys_that_need_another_one(make_config, overrides, message) -> None:
    with pytest.raises(UserError, match=message):
        make_config(*overrides)


def scoring(task, scores: list[float]):
    """The task with these scores in its evaluations, whose own randomness it disturbs."""
    left = iter(scores)

    def evaluate(model, *, items, seed):
        assert not model.training
        torch.rand(7)
        return Evaluation(metrics={"score": next(left)})

    task.evaluate = evaluate
    return task


def steps_kept(directory) -> list[int]:
    places = [directory / "checkpoint", *(directory / "checkpoints").glob("*")]
    return sorted(checkpoint_contents(place)["step"] for place in places)


def test_the_best_checkpoint_is_kept_however_old(
    train, toy_task, tmp_path, metrics_of, capsys
) -> None:
    train(*BEST, "train.checkpoint_every=1", task=scoring(toy_task(), [0.2, 0.5, 0.1, 0.4]))
    assert steps_kept(tmp_path / "run") == [4, 8]
    found = [record.get("eval/score") for record in metrics_of(tmp_path / "run")]
    assert found == [None, 0.2, None, 0.5, None, 0.1, None, 0.4]
    # A new best one takes the place of the old.
    train(*BEST, name="rising", task=scoring(toy_task(), [0.1, 0.2, 0.3, 0.0]))
    assert steps_kept(tmp_path / "rising") == [6, 8]


def test_the_run_stops_after_evaluations_that_are_not_better(
    train, toy_task, tmp_path, metrics_of
) -> None:
    stopped = train(
        *BEST, "train.early_stop=2", task=scoring(toy_task(), [0.5, 0.6, 0.6, 0.1, 0.9])
    )
    assert stopped.step == 8  # at its last step, where it ends anyway
    stopped = train(*BEST, "train.early_stop=2", name="early",
                    task=scoring(toy_task(), [0.6, 0.5, 0.4, 0.9]))  # fmt: skip
    assert stopped.step == 6 and steps_kept(tmp_path / "early") == [2, 6]
    # Continued, it does nothing: the state says that it stopped.
    assert train(*BEST, "train.early_stop=2", name="early", task=scoring(toy_task(), [])).step == 6


def test_evaluations_change_nothing_and_a_resumed_run_goes_on(train, toy_task, tmp_path) -> None:
    plain = train("train.steps=8")
    scores = [0.6, 0.5, 0.55, 0.9]
    whole = train(*BEST, name="whole", task=scoring(toy_task(), scores))
    train(*BEST, "train.steps=5", name="parts", task=scoring(toy_task(), scores[:2]))
    parts = train(*BEST, name="parts", task=scoring(toy_task(), scores[2:]))
    for ours, other, wanted in zip(
        parts.model.parameters(), whole.model.parameters(), plain.model.parameters(), strict=True
    ):
        assert torch.equal(ours, wanted) and torch.equal(other, wanted)
    assert parts.schedule == whole.schedule and parts.schedule.best_step == 8


def two_ranks(task, config, folder) -> list:
    from rich.console import Console

    ranks = Ranks(torch.distributed.get_rank(), 2)
    store = Trainer(config, task, folder, ranks)
    store.save = lambda: None  # checkpoints of several ranks are not the subject
    store.fit(Console(file=open("/dev/null", "w")))  # noqa: SIM115
    return [store.step, store.schedule.best_step, store.schedule.best]


def test_all_ranks_stop_after_the_same_step(toy_task, make_config, tmp_path) -> None:
    config = make_config(*BEST, "train.early_stop=1")
    found = run_ranks(2, two_ranks, scoring(toy_task(), [0.5, 0.4]), config, tmp_path)
    assert found == [[4, 2, 0.5]] * 2
