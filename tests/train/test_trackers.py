"""wandb and trackio get a run's metrics; what goes wrong there does not end the training."""

import json
import logging
import math
import sys
import textwrap

import pytest

from wavalign_fast.config.layers import parse_overrides, resolve_config
from wavalign_fast.errors import UserError
from wavalign_fast.train import trackers
from wavalign_fast.train.owned_files import own_paths, write_marker
from wavalign_fast.train.trackers import check_tracker, open_tracker, settings

pytestmark = pytest.mark.usefixtures("toy_recipe", "no_report", "in_tmp_path")

FAKE = """
import json, pathlib

CALLS = pathlib.Path("calls.jsonl")

def note(**call):
    with CALLS.open("a") as file:
        file.write(json.dumps(call) + "\\n")

class Settings(dict):
    pass

class Run:
    def log(self, metrics, step=None):
        note(log=metrics, step=step)

    def finish(self):
        note(finish=True)

def init(**options):
    note(init=options)
    return Run()
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Makes a package of the given name and source importable; returns a reader of its calls."""

    made = []

    def make(name: str, source: str = FAKE):
        made.append(name)
        folder = tmp_path / "packages" / name
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text(textwrap.dedent(source))
        monkeypatch.syspath_prepend(str(tmp_path / "packages"))
        monkeypatch.delitem(sys.modules, name, raising=False)
        return lambda: [json.loads(line) for line in (tmp_path / "calls.jsonl").open()]

    yield make
    for name in made:
        sys.modules.pop(name, None)


def config_of(*overrides: str):
    return resolve_config([{"recipe": "toy"}, parse_overrides(overrides)])


def test_wandb_gets_every_step_of_a_run_and_a_resumed_run_is_the_same_one(
    fake, train_toy, in_tmp_path
):
    calls = fake("wandb")
    words = ("--name", "one", "telemetry.tracker=wandb", "telemetry.project=speech")
    words += ("telemetry.offline=true", "train.eval_items=0")
    assert train_toy(*words, "train.steps=2") == 0
    assert train_toy(*words, "train.steps=3", "--resume") == 0
    first, *rest = calls()
    options = first["init"]
    assert (options["project"], options["name"]) == ("speech", "one")
    assert (options["mode"], options["resume"]) == ("offline", "allow")
    assert options["dir"] == str(in_tmp_path / "runs" / "one")[len(str(in_tmp_path)) + 1 :]
    assert options["config"]["train"]["steps"] == 2
    assert [call.get("step", "end") for call in rest if "init" not in call] == [
        1,
        2,
        "end",
        3,
        "end",
    ]
    logged = [call["log"] for call in rest if "log" in call]
    lines = [json.loads(line) for line in (in_tmp_path / "runs/one/metrics.jsonl").open()]
    assert [entry["loss/total"] for entry in logged] == [line["loss/total"] for line in lines]
    assert {call["init"]["id"] for call in calls() if "init" in call} == {options["id"]}


def test_trackio_continues_a_run_only_when_it_is_resumed(fake, in_tmp_path):
    calls = fake("trackio")
    run = in_tmp_path / "all" / "both"
    run.mkdir(parents=True)
    write_marker(run.parent, arms=["both"])
    config = config_of("telemetry.tracker=trackio")
    for _ in range(2):
        writer = open_tracker(run, config)
        writer.write(1, 2.5, {"kl": 0.5, "reward/mean": math.nan})
        writer.close()
    first, second = (call["init"] for call in calls() if "init" in call)
    assert (first["resume"], second["resume"]) == ("never", "allow")
    assert first["name"] == second["name"] == "all-both"
    assert calls()[1] == {"log": {"time_s": 2.5, "kl": 0.5}, "step": 1}


def test_a_missing_package_is_one_line_before_anything_is_computed(
    refused, in_tmp_path, monkeypatch
):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    assert "the package trackio is not installed" in refused("telemetry.tracker=trackio")
    assert list(in_tmp_path.glob("runs/*/*.json*")) == []


def test_the_folder_that_wandb_writes_is_not_taken_for_the_package(tmp_path, monkeypatch):
    (tmp_path / "some_tracker").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match="not installed; pip install some_tracker"):
        check_tracker("some_tracker")


def test_a_tracker_that_refuses_is_one_line(fake, refused):
    fake("wandb", "Settings = dict\ndef init(**options):\n    raise ValueError('no API key')\n")
    line = refused("telemetry.tracker=wandb", "train.eval_items=0")
    assert "wandb cannot start (no API key); log in, or telemetry.offline=true" in line


@pytest.mark.parametrize("failing", ["log", "finish"])
def test_an_error_while_training_is_said_once_and_ends_nothing(fake, in_tmp_path, caplog, failing):
    broken = FAKE.replace(
        f"def {failing}(self",
        f"def {failing}(self, *a, **k): raise OSError('gone')\n    def other(self",
    )
    fake("trackio", broken)
    writer = open_tracker(in_tmp_path, config_of("telemetry.tracker=trackio"))
    for step in (1, 2):
        writer.write(step, 0.0, {"kl": 1.0})
    writer.close()
    (record,) = caplog.records
    assert (
        record.levelno == logging.WARNING and "trackio cannot be written (gone)" in record.message
    )


def test_secrets_are_not_sent():
    config = resolve_config([{"recipe": "toy", "task": {"judge": {"api_key": "sk"}, "hidden": 16}}])
    assert settings(config)["task"] == {"judge": {"api_key": "***"}, "hidden": 16}


def test_what_wandb_writes_is_removed_with_the_run(in_tmp_path):
    run = in_tmp_path / "one"
    write_marker(run)
    inside = run / "wandb" / "offline-run-20261128_053451-abc123" / "files"
    inside.mkdir(parents=True)
    (run / "wandb" / "debug-internal.log").touch()
    (run / "wandb" / "latest-run").symlink_to("offline-run-20261128_053451-abc123")
    assert run / "wandb" in own_paths(run)
    (run / "wandb" / "notes.txt").touch()
    with pytest.raises(UserError, match=r"wandb/notes\.txt is not a file of this program"):
        own_paths(run)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["telemetry.project=x"], "project 'x' given without a tracker"),
        (["telemetry.offline=true"], "offline true given with tracker null"),
        (["telemetry.offline=true", "telemetry.tracker=trackio"], "with tracker trackio"),
        (["telemetry.tracker=mlflow"], "wanted one of wandb, trackio or null"),
        (["telemetry.profile_steps=[3,2]"], "wanted [first, last] with first <= last"),
        (["telemetry.profile_steps=[2,9]"], "[2, 9] given, wanted at most train.steps, 4"),
        (["telemetry.profile_steps=3"], "telemetry.profile_steps: 3 given"),
    ],
)
def test_keys_without_an_effect_are_refused(refused, words, said):
    assert said in refused(*words)
