"""A task may work on its rewards while the rollouts are scored."""

import threading

import pytest
import torch
import torch.distributed as dist

from tests.ranks import run_ranks
from wavalign_fast.errors import OtherRankError, UserError
from wavalign_fast.train import step as steps
from wavalign_fast.train.exchange import metrics_everywhere, rewards_everywhere
from wavalign_fast.train.phases import Stopwatch
from wavalign_fast.train.policy import Policy
from wavalign_fast.train.ranks import Ranks
from wavalign_fast.train.rewards import Rewarder
from wavalign_fast.train.step import TrainStep

KL = ("loss.text_kl=0.3", "loss.speech_kl=0.2")
CAPPED = ("loss.normalisation=token", "loss.importance_cap=1.5")
LONGEST_S = 20.0


class Handle:
    """Rewards that a thread computes once it may."""

    def __init__(self, compute, may_end: threading.Event, events: list[str]) -> None:
        self.events = events
        self.found: list = []
        self.thread = threading.Thread(target=self._work, args=(compute, may_end), daemon=True)
        self.thread.start()

    def _work(self, compute, may_end) -> None:
        if may_end.wait(LONGEST_S):
            self.found = compute()

    def result(self):
        self.events.append("result")
        self.thread.join()
        return self.found

    def metrics(self):
        return {"judge/asked": float(len(self.found)), "judge/latency_p50_s": 0.25}


def started(task, events=None, may_end=None):
    """Gives the toy a ``start_rewards``, and takes its ``rewards`` away from the trainer."""
    events = [] if events is None else events
    if may_end is None:
        may_end = threading.Event()
        may_end.set()
    rewards = task.rewards

    def start(completions):
        events.append("start")
        return Handle(lambda: rewards(completions), may_end, events)

    task.start_rewards = start
    task.rewards = None
    return task


@pytest.mark.parametrize("overrides", [KL, CAPPED, (*KL, "loss.importance_cap=1.5")])
def test_the_judge_works_while_rollouts_are_scored(toy_task, make_config, monkeypatch, overrides):
    """It may not end before the last score, so a step that waited before would have no rewards."""
    config = make_config(*overrides, "loss.policy_scope=all")
    events: list[str] = []
    scored = threading.Event()
    task = started(toy_task(), events, scored)
    reference = Policy(task.load_model()) if "loss.text_kl=0.3" in overrides else None
    step = TrainStep(config, task, Policy(task.load_model()), reference, Ranks())
    score, clock = steps.score_rollouts, Stopwatch()

    def scores(*args, **settings):
        events.append("score")
        if events.count("score") == micro_batches * ((reference is not None) + capped):
            scored.set()
        return score(*args, **settings)

    monkeypatch.setattr(steps, "score_rollouts", scores)
    step.objective.register_forward_pre_hook(lambda *_: events.append("loss"))
    capped = config.loss.importance_cap is not None
    batch = step.prepare(task.train_examples[: step.examples_needed], 1, clock)
    micro_batches = sum(micro.sampled > 0 for micro in batch.micro_batches)
    assert events == ["start"] and micro_batches > 1
    metrics = step.backward(batch, clock).metrics
    order = [event for event, before in zip(events, ["", *events], strict=False) if event != before]
    assert order == ["start", "score", "result", "loss"]
    assert metrics["reward/failed"] == 0 and metrics["judge/asked"] == 12
    assert metrics["judge/latency_p50_s"] == 0.25 and clock.seconds["reward"] > 0


@pytest.mark.parametrize("anchors", [1, 0])
def test_rows_that_depend_on_rewards_wait_for_them(toy_task, make_config, anchors):
    """Demonstrations do not, so that their layers run beside the judge, who may end only then."""
    events: list[str] = []
    ran = threading.Event()
    if not anchors:
        ran.set()
    task = started(toy_task(), events, ran)
    config = make_config(f"anchor.rows={anchors}", *([] if anchors else ["loss.mixing=1"]))
    step = TrainStep(config, task, Policy(task.load_model()), None, Ranks())

    def layers_ran(*_):
        events.append("layers")
        ran.set()

    clock = Stopwatch()
    batch = step.prepare(task.train_examples[: step.examples_needed], 1, clock)
    assert events == (["start"] if anchors else ["start", "result"])
    events.clear()
    step.policy.model.model.register_forward_hook(layers_ran)
    metrics = step.backward(batch, clock).metrics
    assert events[: 1 + anchors] == (["layers", "result"] if anchors else ["layers"])
    assert metrics["reward/failed"] == 0
    assert sum(not micro.block.is_rollout for micro in batch.micro_batches) == anchors


def test_what_the_judge_takes_changes_no_bit(toy_task, make_config, monkeypatch):
    """A judge who ends at once, and one who ends after the layers: the same gradients."""
    found = []
    for late in (False, True):
        ran = threading.Event()
        task = started(toy_task(), None, ran)
        if not late:
            ran.set()
        policy = Policy(task.load_model())
        step = TrainStep(make_config("train.block_tokens=8"), task, policy, None, Ranks())
        clock = Stopwatch()
        batch = step.prepare(task.train_examples[:4], 1, clock)
        policy.model.model.register_forward_hook(lambda *_, ran=ran: ran.set())
        step.backward(batch, clock)
        found.append([weight.grad for weight in policy.parameters()])
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


@pytest.mark.parametrize(
    "overrides", [(), KL, CAPPED, (*KL, "train.updates_per_rollout=2", "loss.clip=0.2")]
)
def test_the_weights_have_the_same_bits(train, toy_task, metrics_of, tmp_path, overrides):
    plain = train(*overrides, name="plain")
    other = train(*overrides, name="started", task=started(toy_task()))
    for name, weight in plain.model.state_dict().items():
        assert torch.equal(weight, other.model.state_dict()[name]), name
    assert torch.equal(plain.train_step.objective.gate.value, other.train_step.objective.gate.value)
    for one, two in zip(*(metrics_of(tmp_path / n) for n in ("plain", "started")), strict=True):
        assert two.pop("judge/asked") == 12.0 and two.pop("judge/latency_p50_s") == 0.25
        assert one.keys() == two.keys()
        for name in ("loss/total", "gate/lambda", "reward/mean", "reward/std"):
            assert one[name] == two[name]


@pytest.mark.parametrize("given", [[1.0], None, ["x"] * 2, KeyError("answer")])
def test_what_a_handle_returns_is_checked(toy_task, given):
    class Broken:
        def result(self):
            if isinstance(given, Exception):
                raise given
            return given

    task = toy_task()
    task.start_rewards = lambda completions: Broken()
    pending = Rewarder(task).start([object(), object()])
    with pytest.raises(UserError, match=r"^rewards of ToyTask"):
        pending.result()


def test_a_judge_that_stops_the_run_loses_nothing(train, toy_task, metrics_of, tmp_path):
    """The failure shows after the rollouts were scored; the steps before it are saved."""
    task = toy_task()
    rewards = task.rewards

    def fails_at_three(completions):
        if task.calls.get("rewards", 0) == 2:
            raise UserError("40 of the last 64 scores are missing")
        return rewards(completions)

    class Lazy:
        def __init__(self, completions) -> None:
            self.completions = completions

        def result(self):
            return fails_at_three(self.completions)

    task.start_rewards = Lazy
    message = r"step 3 \(checkpoint of step 2 saved in .*\): 40 of the last 64 scores"
    with pytest.raises(UserError, match=message):
        train("train.steps=4", *KL, name="failed", task=task)
    resumed = train("train.steps=4", *KL, name="failed")
    whole = train("train.steps=4", *KL, name="whole")
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name])
    assert [record["step"] for record in metrics_of(tmp_path / "failed")] == [1, 2, 3, 4]


def one_rank_fails(toy_task, make_config) -> list[str]:
    """Returns what each of two ranks raises: rank 1's judge fails once the rollouts are scored."""
    ranks = Ranks(dist.get_rank(), dist.get_world_size())
    task = toy_task()
    if ranks.rank == 1:
        task.rewards = lambda completions: [None]
    task = started(task)
    config = make_config(*KL)
    step = TrainStep(config, task, Policy(task.load_model()), Policy(task.load_model()), ranks)
    batch = step.prepare(task.train_examples[: step.examples_needed], 1, Stopwatch())
    try:
        step.backward(batch, Stopwatch())
    except OtherRankError as error:
        return ["other", str(error)]
    except UserError as error:
        return ["own", str(error)]
    return ["none", ""]


def test_ranks_fail_together(toy_task, make_config):
    first, second = run_ranks(2, one_rank_fails, toy_task, make_config)
    assert first[0] == "other" and "rank 1 of 2 failed: rewards of ToyTask: 1 given" in first[1]
    assert second[0] == "own" and "1 given for 4 completions" in second[1]


def exchanged() -> list:
    ranks = Ranks(dist.get_rank(), dist.get_world_size())
    own = [torch.tensor([0.0, 1.0, 4.0, torch.nan]), torch.tensor([2.0, 3.0])][ranks.rank]
    table = rewards_everywhere(own, 3, 2, ranks)
    mine = [{"judge/asked": 4.0, "judge/latency_p95_s": 2.0}, {"judge/asked": 2.0}][ranks.rank]
    mine |= {"judge/spread_max": float(ranks.rank), "judge/latency_p95_s": 2.0 - ranks.rank}
    mine |= {"rewards/wer_sum": 1.0 + ranks.rank, "rewards/wer_count": 1.0 + 3 * ranks.rank}
    mine |= {"rewards/none_sum": 0.0, "rewards/none_count": 0.0}
    return [table, metrics_everywhere(mine, ranks)]


def test_rewards_and_metrics_of_all_ranks():
    for table, metrics in run_ranks(2, exchanged):
        assert table[:2].tolist() == [[0.0, 1.0], [2.0, 3.0]]
        assert table[2, 0] == 4.0 and table[2, 1].isnan()
        assert metrics == {
            "judge/asked": 6.0, "judge/latency_p95_s": 2.0, "judge/spread_max": 1.0,
            "rewards/wer": 0.6,
        }  # fmt: skip
