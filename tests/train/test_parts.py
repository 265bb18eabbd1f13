"""Small parts: prompt sampler, learning rate, files, progress display."""

import io
import json
import math

import pytest
from rich.console import Console

from wavalign_fast.config.schema import OptimizerConfig
from wavalign_fast.train.atomic_files import to_json, write_json
from wavalign_fast.train.optimizer import learning_rate
from wavalign_fast.train.progress import ProgressDisplay
from wavalign_fast.train.prompt_sampler import PromptSampler


def test_an_epoch_holds_every_example_once_and_epochs_differ():
    sampler = PromptSampler(7, seed=3)
    first, second = sampler.take(7), sampler.take(7)
    assert sorted(first) == sorted(second) == list(range(7))
    assert first != second


def test_a_restored_sampler_goes_on_where_it_was_whatever_the_step_size():
    sampler = PromptSampler(7, seed=3)
    sampler.take(5)
    restored = PromptSampler(7, seed=3)
    restored.load_state_dict(json.loads(json.dumps(sampler.state_dict())))
    assert [*restored.take(4), *restored.take(9)] == sampler.take(13)


def test_a_sampler_state_over_other_data_is_refused():
    with pytest.raises(ValueError, match="8 examples with seed 0, wanted 7"):
        PromptSampler(7, seed=0).load_state_dict(PromptSampler(8, seed=0).state_dict())


def test_learning_rate_warms_up_and_falls():
    config = OptimizerConfig(lr=1.0, warmup_steps=4, schedule="cosine")
    rates = [learning_rate(config, step, 12) for step in range(1, 13)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0 and rates[4:] == sorted(rates[4:], reverse=True)
    assert 0 < rates[-1] < 0.1
    assert learning_rate(OptimizerConfig(lr=1.0), 1, 10) == 1.0


def test_json_is_strict(tmp_path):
    assert to_json({"a": math.nan, "b": [math.inf, 1.5]}) == '{"a": null, "b": [null, 1.5]}'
    with pytest.raises(TypeError):
        write_json(tmp_path / "x.json", {"a": object()})
    assert list(tmp_path.iterdir()) == []


METRICS = {
    "reward/mean": 2.0,
    "loss/anchor": 1.0,
    "perf/rollout_s": 3.0,
    "perf/reward_s": 1.0,
    "perf/exchange_s": 0.001,
}


def show(console, steps):
    with ProgressDisplay(console, title="arm", steps=steps, done=0, log_every=2) as display:
        for step in range(1, steps + 1):
            display.update(step, METRICS | {"reward/mean": float(step)})


def test_without_a_terminal_one_plain_line_an_interval():
    file = io.StringIO()
    show(Console(file=file, width=40), 5)
    lines = file.getvalue().splitlines()
    assert [line.split()[2] for line in lines] == ["2/5", "4/5", "5/5"]
    assert "reward 3.50" in lines[1] and "rollout 75%" in lines[1] and "reward 25%" in lines[1]
    assert "exchange" not in lines[1]  # alone, a rank exchanges nothing
    assert "\x1b" not in file.getvalue() and "policy" not in lines[0]


def test_missing_rewards_are_shown_where_there_are_any():
    file = io.StringIO()
    console = Console(file=file, width=200)
    with ProgressDisplay(console, title="arm", steps=9, done=0, log_every=2) as display:
        for step, (reward, failed) in enumerate(
            [(2.0, 0.0), (3.0, 0.0), (math.nan, 8.0), (3.0, 1.0), (math.nan, 8.0), (math.nan, 8.0)]
        ):
            display.update(step + 1, {"reward/mean": reward, "reward/failed": failed})
    none, some, all_failed = file.getvalue().splitlines()
    assert "reward 2.50" in none and "failed" not in none
    assert "reward 3.00  failed 4.5" in some  # the mean of the step that has one
    assert "reward" not in all_failed and "failed 8.0" in all_failed


def test_skipped_steps_and_the_share_of_the_peak_are_shown_where_there_are_any():
    file = io.StringIO()
    console = Console(file=file, width=200)
    with ProgressDisplay(console, title="arm", steps=9, done=0, log_every=2) as display:
        for step, skipped in enumerate([0.0, 0.0, 0.0, 3.0], start=1):
            display.update(
                step, {"tokens_per_s": 100.0 * step, "perf/mfu": 0.412, "skipped_steps": skipped}
            )
    none, some = file.getvalue().splitlines()
    assert "tokens/s 150  MFU 41.2%" in none and "skipped" not in none
    assert "tokens/s 350" in some and "skipped 3" in some


@pytest.mark.parametrize("width", [40, 200])
def test_on_a_terminal_a_live_panel(width):
    file = io.StringIO()
    show(Console(file=file, force_terminal=True, width=width), 3)
    shown = file.getvalue()
    assert "3/3" in shown and "rollout 75%" in shown and "2.50" in shown
