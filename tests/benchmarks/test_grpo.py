"""The step of GRPO beside TRL's: the clock, the checks before a time counts, and the table."""

import statistics
from dataclasses import replace

import pytest
import torch

from benchmarks import bench_grpo
from benchmarks.grpo import sides, trl_side
from benchmarks.grpo.clock import PHASES, Clock
from benchmarks.grpo.work import RandomModel, Recorded, Size
from benchmarks.report.grpo import grpo_html, grpo_markdown
from tests.benchmarks.synthetic import MACHINE
from wavalign_fast.losses import ModalityLayout


class TinyModel(RandomModel):
    vocabulary = 48
    layout = ModalityLayout(vocab_size=vocabulary, speech=())
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16}  # noqa: RUF012
    highest_prompt_id = 40


TINY = Size(name="tiny", title="tiny", prompts=2, group=3, length=5, steps=2, make_task=TinyModel)


def a_run(seed, *, cpu=1.0, length=4, gap=0.0):
    """What one process of a side returns."""
    draws = torch.Generator().manual_seed(seed)
    wanted = (sides.WARM + TINY.steps) * TINY.completions
    rewards = torch.rand(wanted, generator=draws) + gap
    return {
        "cpu_s": cpu, "wall_s": 2 * cpu, "phases_cpu_s": dict.fromkeys(PHASES, cpu / 4),
        "peak_MiB": 100.0 * cpu, "prompts": 5, "lengths": [length] * wanted,
        "rewards": rewards.tolist(),
    }  # fmt: skip


@pytest.fixture
def children(monkeypatch):
    """Runs of TRL take 3 s, ours 2 s; an entry of the dictionary replaces one."""
    other = {}

    def child(what, side, size, seed):
        if what == "--check":
            return other.get("gradient", 0.0)
        if side == "trl":
            return other.get("run", a_run)(100 + seed, cpu=3.0)
        return a_run(seed, cpu=2.0)

    monkeypatch.setattr(bench_grpo, "child", child)
    return other


def test_the_clock_ends_phases_at_rewards_and_updates():
    weight = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=1.0)
    seen = []
    clock = Clock(before_update=lambda: seen.append(float(weight.grad)))
    ticks = iter(range(100))
    clock.mark = lambda: clock.marks.append((float(next(ticks) ** 2), 0.0))
    with clock.watching():
        for _ in range(3):
            clock.rewarding(False)
            clock.rewarding(True)
            weight.sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    optimizer.step()  # outside: not marked
    assert len(clock.marks) == 3 * len(PHASES)
    assert seen == [1.0] * 3
    found = clock.seconds(skip=1)
    # The marks are n²: those of step 2 begin at 3² and end at 7², those of step 3 at 11².
    assert found["cpu_s"] == (11**2 - 3**2) / 2
    assert found["phases_cpu_s"]["rollout"] == ((4**2 - 3**2) + (8**2 - 7**2)) / 2
    assert found["phases_cpu_s"]["optimizer"] == ((7**2 - 6**2) + (11**2 - 10**2)) / 2
    assert sum(found["phases_cpu_s"].values()) == found["cpu_s"]


def test_a_second_call_of_rewards_in_a_step_is_refused():
    clock = Clock()
    clock.rewarding(False)
    clock.rewarding(True)
    with pytest.raises(ValueError, match="rewards after 2 marks, want one call a step"):
        clock.rewarding(False)


def test_trl_gets_the_same_ids():
    ids = (1, 0, 2, 40, 12, 1, 47)
    found = trl_side.tokenizer(Recorded(TinyModel()))(text=[trl_side.as_text(ids)])
    assert found["input_ids"] == [list(ids)]


def test_our_trainer_runs_and_is_timed():
    found = sides.run("ours", TINY, 0)
    assert found["cpu_s"] == pytest.approx(sum(found["phases_cpu_s"].values()))
    assert all(spent > 0 for spent in found["phases_cpu_s"].values())
    assert len(found["lengths"]) == len(found["rewards"]) == 3 * TINY.completions
    assert max(found["lengths"]) == TINY.length


def test_gradients_are_compared_on_the_same_completions(monkeypatch):
    assert sides.disagreement("ours", TINY, 0) == 0.0
    monkeypatch.setitem(
        sides.SIDES,
        "other",
        replace(
            sides.SIDES["ours"], settings=lambda size: {"loss": {"advantage_std": "population"}}
        ),
    )
    # Advantages over the population's deviation are larger by √(3/2) in groups of 3.
    assert sides.disagreement("other", TINY, 0) == pytest.approx(1.5**0.5 - 1, rel=1e-2)


# TRL itself sets it.
@pytest.mark.filterwarnings("ignore:.gradient_checkpointing. is deprecated:FutureWarning")
def test_trl_over_our_head_has_the_gradient_of_our_trainer(monkeypatch):
    pytest.importorskip("trl")
    from wavalign_fast.integrations import trl_head

    score, calls = trl_head.score, []

    def counted(*arguments, **options):
        calls.append(options)
        return score(*arguments, **options)

    monkeypatch.setattr(trl_head, "score", counted)
    assert sides.disagreement("trl-fused-head", TINY, 0) < sides.SIDES["trl-fused-head"].tolerance
    assert calls


def test_the_record_and_its_table(children):
    children["gradient"] = 2e-7
    record = bench_grpo.measure(TINY, ["trl", "ours"], rounds=3)
    assert record["sides"]["trl"]["cpu_s"] == 3.0
    assert record["sides"]["trl"]["cpu_s_over_ours"] == {"median": 1.5, "range": [1.5, 1.5]}
    assert record["sides"]["ours"]["phases_cpu_s"]["rollout"] == 0.5
    assert record["machine"]["threads"] == 1
    record["machine"] |= MACHINE
    table = grpo_markdown({"sizes": {"tiny": record}})
    label = sides.SIDES["trl"].label
    assert f"| {label} | 3.00 s | 1.50 | 750 ms | 750 ms | 300 MiB | 2.0e-7 |" in table
    assert "| **wavalign_fast, fp32** | 2.00 s | 1.00 |" in table
    assert MACHINE["commit"] in table
    assert "leaves their forward" not in table  # no group has equal rewards
    record["equal_groups"] = 0.25
    assert "In 25 % of the groups all rewards are equal" in grpo_html({"sizes": {"tiny": record}})


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"gradient": 1e-3}, "trl: gradient off by 1.0e-03, want at most 1e-04"),
        ({"gradient": float("nan")}, "gradient off by nan"),
        ({"run": lambda seed, cpu: a_run(seed, length=5)}, "mean of lengths inf standard errors"),
        ({"run": lambda seed, cpu: a_run(seed, gap=1.0)}, "mean of rewards"),
        (
            {"run": lambda seed, cpu: a_run(seed) | {"lengths": [4]}},
            r"trl: \{1\} completions, want 18",
        ),
    ],
)
def test_a_side_that_does_other_work_is_not_recorded(children, other, named):
    children.update(other)
    with pytest.raises(bench_grpo.WrongWorkError, match=named):
        bench_grpo.measure(TINY, ["trl", "ours"], rounds=2)


def test_deviations_count_groups_as_one_draw():
    runs = [{"rewards": [1.0, 3.0, 5.0, 7.0]}]
    assert bench_grpo.group_means(runs, "rewards", 2) == [2.0, 6.0]
    one, other = [1.0, 2.0, 3.0], [2.0, 3.0, 4.0]
    error = (2 * statistics.variance(one) / 3) ** 0.5
    assert bench_grpo.deviations(one, other) == pytest.approx(-1 / error)


def test_without_trl_the_command_says_what_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(sides.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as ended:
        bench_grpo.main([])
    assert ended.value.code == 2
    assert "not installed: trl, datasets, accelerate" in capsys.readouterr().err
