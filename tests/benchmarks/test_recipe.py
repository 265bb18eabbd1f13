"""The measurement of the recipe: the runs that it starts and keeps, and its record."""

import json
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks import bench_recipe

FINAL = {"text_accuracy": 0.5, "text_accuracy_greedy": 0.75, "items": 4.0}
FINAL |= {"speech_matches_text": 0.25, "speech_says_sum": 0.25}


@pytest.fixture
def started(monkeypatch, tmp_path):
    """Arguments of the commands, which write an evaluation instead of training."""
    commands = []

    def run(command, **options):
        arguments = command[command.index("train") :]
        commands.append(arguments)
        named = dict(pairwise(arguments))
        folder = Path(named["--output"]) / named["--name"]
        folder.mkdir(parents=True, exist_ok=True)
        accuracy = 0.5 + 0.25 * int(named["--seed"])
        evaluation = {"seconds": 3.0, "base": FINAL, "final": FINAL | {"text_accuracy": accuracy}}
        (folder / "evaluation.json").write_text(json.dumps(evaluation))
        assert options["env"]["OMP_NUM_THREADS"] == "1"
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(bench_recipe.subprocess, "run", run)
    monkeypatch.setattr(bench_recipe, "machine", lambda: {"commit": "abc1234", "cores": 2})
    monkeypatch.chdir(tmp_path)
    return commands


def test_the_record_has_every_arm_over_all_seeds(started, monkeypatch, capsys):
    saved = {}
    monkeypatch.setattr(bench_recipe, "save", lambda name, record: saved.update({name: record}))
    assert bench_recipe.main(["--arms", "a,b", "--seeds", "0,1", "--jobs", "1", "--save"]) == 0
    record = saved["spoken_sums"]
    assert (record["seeds"], record["jobs"], record["machine"]["commit"]) == ([0, 1], 1, "abc1234")
    assert set(record["arms"]) == {"a", "b"}
    assert record["arms"]["b"]["text_accuracy"]["values"] == [0.5, 0.75]
    assert record["arms"]["b"]["text_accuracy_greedy"]["mean"] == 0.75
    assert record["arms"]["b"]["seconds"] == {"values": [3.0, 3.0]}
    assert record["base"]["text_accuracy"] == {"mean": 0.5, "std": 0.0, "values": [0.5, 0.5]}
    assert "text_accuracy 0.750, text_accuracy_greedy 0.750" in capsys.readouterr().out


def test_runs_are_kept_by_commit(started, monkeypatch):
    for commit in ("abc1234", "abc1234", "def5678"):
        monkeypatch.setattr(bench_recipe, "machine", lambda commit=commit: {"commit": commit})
        assert bench_recipe.main(["--arms", "a", "--seeds", "0"]) == 0
    assert ["--resume" in arguments for arguments in started] == [False, True, False]
    assert sorted(path.name for path in Path("runs/bench").iterdir()) == ["abc1234", "def5678"]


def test_quick_trains_two_steps_of_every_arm_and_keeps_nothing(started):
    assert bench_recipe.main(["--quick", "--arms", "a,b"]) == 0
    assert [arguments[-2:] for arguments in started] == 2 * [list(bench_recipe.QUICK)]
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--quick", "--save"], "not allowed with"),
        (["--save"], "the checkout is abc1234-dirty, wanted one without uncommitted changes"),
    ],
)
def test_runs_that_are_no_measurement_are_not_saved(started, monkeypatch, capsys, argv, message):
    monkeypatch.setattr(bench_recipe, "machine", lambda: {"commit": "abc1234-dirty"})
    with pytest.raises(SystemExit):
        bench_recipe.main(argv)
    assert message in capsys.readouterr().err
    assert started == []


def test_a_run_that_fails_says_which_and_why(started, monkeypatch):
    def fail(command, **options):
        return subprocess.CompletedProcess(command, 2, "", "no such arm\n")

    monkeypatch.setattr(bench_recipe.subprocess, "run", fail)
    with pytest.raises(RuntimeError, match="spoken-sums-a-seed0 ended with 2: no such arm"):
        bench_recipe.main(["--arms", "a", "--seeds", "0"])
