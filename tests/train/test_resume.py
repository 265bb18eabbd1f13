"""``--resume`` says what it continues and what changed, and a stopped run prints how to resume."""

import functools
import json
import os
import random
import shlex
import shutil
import threading
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from wavalign_fast.cli import main
from wavalign_fast.rewards.judge.options import JudgeOptions
from wavalign_fast.train.owned_files import MARKER_FILE
from wavalign_fast.train.run_directory import (
    CHANGEABLE_ON_RESUME,
    SERVICE_KEYS,
    changes,
    check_run,
    fingerprint,
    start_run,
)
from wavalign_fast.train_command import resume_command

pytestmark = pytest.mark.usefixtures("toy_recipe", "no_report", "in_tmp_path")


def command_of(err):
    """The words of the command after ``continue with:`` on stderr."""
    line = next(line for line in err.splitlines() if "continue with: " in line)
    words = shlex.split(line.partition("continue with: ")[2])
    assert words[:2] == ["wavalign-fast", "train"]
    return words[1:]


@pytest.mark.parametrize(
    "argv",
    [
        ["--name", "one"],
        ["--output", "my runs/it's", "--seed", "3", "task.hidden=8"],
        ["--arms", "both,sft", "--overwrite"],
        ["my config.yaml"],
        ["./lr=1.yaml", "loss.clip=[0.1, 0.2]", "--overw"],
    ],
)
def test_the_command_that_is_printed_goes_on(in_tmp_path, train_toy, capsys, stop_at, argv):
    for name in ("my config.yaml", "lr=1.yaml"):
        (in_tmp_path / name).write_text("optimizer: {lr: 2e-3}\n")
    stop_at(2)
    assert train_toy(*argv) == 130
    words = command_of(capsys.readouterr().err)
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "from step 2 of 4" in out and "step 4/4" in out


def test_a_config_from_a_pipe_is_named_by_its_copy_in_the_run(in_tmp_path, capsys, stop_at):
    os.mkfifo("pipe")
    text = "recipe: toy\ntrain: {seed: 7}\n"
    writer = threading.Thread(target=lambda: (in_tmp_path / "pipe").write_text(text), daemon=True)
    writer.start()
    stop_at(2)
    assert main(["train", "pipe", "--name", "3e8", "train.log_every=1"]) == 130
    writer.join()
    words = command_of(capsys.readouterr().err)
    assert "runs/3e8/config.yaml" in words and "pipe" not in words
    assert main(words) == 0
    assert "continuing runs/3e8 from step 2 of 4" in capsys.readouterr().out
    config = yaml.safe_load((in_tmp_path / "runs" / "3e8" / "config.yaml").read_text())
    assert config["train"]["seed"] == 7


def test_a_command_is_quoted_for_a_shell():
    words = ["train", "a b", "--overwrite", "task.path=it's", "--output", "x;y"]
    command = resume_command(words, words[1:2], None)
    assert shlex.split(command) == ["wavalign-fast", "train", "a b", *words[3:], "--resume"]


def test_another_length_is_said_with_what_it_does_to_the_schedule(train_toy, capsys):
    argv = ("--name", "one", "optimizer.schedule=cosine", "train.eval_items=0")
    assert train_toy(*argv, "train.steps=2") == 0
    capsys.readouterr()
    assert train_toy(*argv, "train.steps=3", "train.log_every=1", "--resume") == 0
    out = capsys.readouterr().out
    assert "both: continuing runs/one from step 2 of 3" in out
    assert "both: train.steps: 2 before, 3 now" in out
    assert "both: train.log_every: 10 before, 1 now" in out
    assert "optimizer.schedule: the cosine from here on is that of a run of 3 steps" in out


def test_fewer_steps_than_were_done_are_refused(in_tmp_path, train_toy, refused):
    assert train_toy("--name", "one", "train.steps=3") == 0
    before = (in_tmp_path / "runs/one/config.yaml").read_text()
    line = refused("--name", "one", "train.steps=2", "--resume")
    assert "train.steps: 2 given, runs/one is at step 3 already" in line
    assert (in_tmp_path / "runs/one/config.yaml").read_text() == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("optimizer.lr=1", "optimizer.lr (0.003 then, 1.0 now)"),
        ("optimizer.warmup_steps=2", "optimizer.warmup_steps (0 then, 2 now)"),
        ("optimizer.schedule=cosine", "optimizer.schedule ('constant' then, 'cosine' now)"),
        ("train.seed=5", "train.seed (0 then, 5 now)"),
        ("task.hidden=8", "task.hidden (None then, 8 now)"),
    ],
)
def test_another_setting_is_refused_by_name(
    in_tmp_path, refused, make_config, toy_task, change, said
):
    data = fingerprint(toy_task().train_examples)
    start_run(in_tmp_path / "runs" / "one", make_config("arm=both"), data=data)
    line = refused("--name", "one", "--resume", change)
    assert "was started with another" in line and said in line


@pytest.mark.parametrize(
    "change",
    [
        "model.compile=true",  # here without a run, for compiling takes long
        "parallel.head=sharded",
        "parallel.replicate=2",
        "telemetry.tensorboard=false",
        "train.keep_checkpoints=2",
    ],
)
def test_a_run_takes_another_way_to_compute_or_store(in_tmp_path, make_config, change):
    path = in_tmp_path / "runs" / "one"
    start_run(path, make_config(), data={})
    again = make_config(change)
    check_run(path, again, resume=True, overwrite=False)
    assert [line.partition(":")[0] for line in changes(path, again)] == [change.partition("=")[0]]


def test_another_way_to_compute_changes_no_more_than_rounding(in_tmp_path, train_toy, capsys):
    given = ("train.eval_items=0", "optimizer.lr=1e-4")
    others = (
        "model.attention=eager",
        "model.activation_checkpointing=true",
        "loss.backend=reference",
        "rollout.keep_copy=true",
        "train.block_tokens=500",
    )
    assert train_toy("--name", "whole", *given) == 0
    assert train_toy("--name", "parts", *given, "train.steps=2") == 0
    capsys.readouterr()
    assert train_toy("--name", "parts", *given, *others, "--resume") == 0
    said = capsys.readouterr().out
    assert all(f"{change.partition('=')[0]}: " in said for change in others)
    whole, parts = (
        load_file(in_tmp_path / f"runs/{name}/checkpoint/model.safetensors")
        for name in ("whole", "parts")
    )
    assert max(float((whole[name] - parts[name]).abs().max()) for name in whole) < 1e-6


@pytest.mark.parametrize("change", ["content", "order", "count"])
def test_other_training_data_is_refused(train_toy, refused, toy_task, monkeypatch, change):
    assert train_toy("--name", "one", "train.steps=2") == 0
    init = toy_task.__init__

    @functools.wraps(init)
    def changed(self, **options):
        init(self, **options)
        if change == "content":
            self.train_examples[3] = self.train_examples[2]
        elif change == "order":
            self.train_examples.reverse()
        else:
            self.train_examples.pop()

    monkeypatch.setattr(toy_task, "__init__", changed)
    line = refused("--name", "one", "--resume", "train.steps=4")
    examples = 9 if change == "count" else 10
    assert f"other training data (10 examples then, {examples} now" in line


def test_a_run_from_before_there_were_markers_goes_on(in_tmp_path, train_toy, capsys):
    assert train_toy("--name", "one", "train.steps=2") == 0
    (in_tmp_path / "runs" / "one" / MARKER_FILE).unlink()
    (in_tmp_path / "runs" / "one" / "checkpoint" / "contents.json").unlink()
    assert train_toy("--name", "one", "train.steps=3", "--resume") == 0
    assert (
        json.loads((in_tmp_path / "runs/one" / MARKER_FILE).read_text())["data"]["examples"] == 10
    )


def test_a_run_without_a_checkpoint_starts_again(in_tmp_path, train_toy, capsys):
    assert train_toy("--name", "one", "train.steps=2") == 0
    shutil.rmtree(in_tmp_path / "runs" / "one" / "checkpoint")
    assert train_toy("--name", "one", "train.steps=3", "--resume") == 0
    assert "continuing runs/one from the start, no checkpoint" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("missing", "ways"),
    [("config.yaml", "--overwrite or another --name"), (MARKER_FILE, "--resume or another --name")],
)
def test_a_process_killed_at_the_start_leaves_a_way_to_go_on(
    in_tmp_path, train_toy, refused, missing, ways
):
    short = ("--name", "one", "train.steps=1", "train.eval_items=0")
    assert train_toy(*short) == 0
    for path in (in_tmp_path / "runs" / "one").iterdir():
        if path.name not in ("config.yaml", MARKER_FILE) or path.name == missing:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert f"runs/one exists; give {ways}" in refused(*short)
    if missing == "config.yaml":
        assert f"config.yaml is missing; give {ways}" in refused(*short, "--resume")
    assert train_toy(*short, ways.split()[0]) == 0


def test_nothing_to_resume_suggests_a_run(train_toy, refused):
    assert train_toy("--name", "monday", "train.steps=1", "train.eval_items=0") == 0
    line = refused("--name", "mondaj", "--resume")
    assert "nothing to resume in runs/mondaj; did you mean monday?" in line


def test_a_task_that_draws_goes_on_as_if_it_had_not_been_stopped(
    in_tmp_path, train_toy, toy_task, monkeypatch
):
    def rewards(self, completions):
        return [random.random() + torch.rand(()).item() for _ in completions]

    monkeypatch.setattr(toy_task, "rewards", rewards)
    assert train_toy("--name", "whole", "train.steps=4") == 0
    assert train_toy("--name", "parts", "train.steps=2") == 0
    random.seed(99)
    torch.manual_seed(99)
    assert train_toy("--name", "parts", "train.steps=4", "--resume") == 0
    weights = [
        in_tmp_path / f"runs/{name}/checkpoint/model.safetensors" for name in ("whole", "parts")
    ]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_the_layers_of_a_command_win_in_order(in_tmp_path, capsys):
    (in_tmp_path / "c.yaml").write_text(
        "recipe: toy\narm: sft\ntrain: {seed: 1, steps: 1}\nname: f\n"
    )
    argv = ["train", "c.yaml", "train.steps=2", "train.steps=3", "--seed", "4", "--name", "n"]
    assert main([*argv, "--arm", "rl", "--print-config"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert (config["train"]["seed"], config["train"]["steps"]) == (4, 3)
    assert (config["name"], config["arm"], config["loss"]["mixing"]) == ("n", "rl", 1.0)


def test_each_of_several_arms_is_itself_whatever_the_file_names(in_tmp_path, capsys):
    (in_tmp_path / "c.yaml").write_text("recipe: toy\narm: sft\n")
    for argv, arms in ([], ["sft"]), (["--arms", "both,rl"], ["both", "rl"]), (["arm=rl"], ["rl"]):
        assert main(["train", "c.yaml", *argv, "--print-config"]) == 0
        configs = list(yaml.safe_load_all(capsys.readouterr().out))
        assert [config["arm"] for config in configs] == arms


def test_one_setting_in_two_forms_is_refused(refused):
    for argv, message in [
        (["--seed", "3", "train.seed=4"], "--seed 3 and train.seed = 4 given, wanted one"),
        (["--name", "a", "name=b"], "--name a and name = 'b' given, wanted one"),
        (["--arm", "rl", "arm=sft"], "--arm rl and arm = 'sft' given, wanted one"),
    ]:
        assert message in refused(*argv)


def test_no_evaluation_is_announced_where_there_is_none(train_toy, capsys):
    assert train_toy("--name", "one", "train.steps=1", "train.eval_items=0") == 0
    assert "evaluating" not in capsys.readouterr().out


@pytest.mark.parametrize("key", ["step", "optimizer", "guard", "objective", "sampler"])
@pytest.mark.parametrize("value", [None, "missing", []])
def test_a_state_with_a_part_missing_or_damaged_is_one_line(train_toy, refused, key, value):
    given = ("--name", "one", "train.eval_items=0", "train.steps=2")
    assert train_toy(*given[:-1], "train.steps=1") == 0
    path = Path("runs/one/checkpoint/training_state.pt")
    state = torch.load(path, weights_only=True)
    del state[key]
    torch.save(state if value == "missing" else {**state, key: value}, path)
    path.with_name("contents.json").unlink()  # it has the checksum of the file as it was
    assert "runs/one/checkpoint cannot be resumed: its state is" in refused("--resume", *given)


def test_a_checkpoint_of_another_model_is_refused_before_the_base_is_evaluated(
    train_toy, refused, toy_task, monkeypatch
):
    given = ("--name", "one", "train.steps=1")
    assert train_toy(*given) == 0
    monkeypatch.setattr(toy_task, "evaluate", lambda *_, **__: pytest.fail("it was evaluated"))
    load = toy_task.load_model
    wider = toy_task(hidden=32)
    monkeypatch.setattr(toy_task, "load_model", lambda self: load(wider))
    line = refused(*given[:-1], "train.steps=2", "--resume")
    assert "another model: model.embed_tokens.weight is (24, 16), wanted (24, 32)" in line


@pytest.mark.parametrize("file", ["training_state.pt", "model.safetensors", "config.json"])
def test_a_truncated_checkpoint_names_the_older_one_beside_it(train_toy, refused, error_line, file):
    given = ("--name", "one", "train.eval_items=0", "train.checkpoint_every=1")
    keep = ("train.keep_checkpoints=3",)
    assert train_toy(*given, *keep, "train.steps=3") == 0
    path = Path("runs/one/checkpoint", file)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    hint = (
        "an older checkpoint, of step 2, is in runs/one/checkpoints/step-000002: --resume takes it "
        "once runs/one/checkpoint is removed"
    )
    line = refused(*given, *keep, "--resume", "train.steps=4")
    assert "cannot be read" in line and hint in line
    if file != "training_state.pt":
        assert hint in error_line("say", "hello", "--run", "runs/one")
    shutil.rmtree("runs/one/checkpoint")
    assert train_toy(*given, *keep, "--resume", "train.steps=4") == 0


@pytest.mark.parametrize("file", ["training_state.pt", "model.safetensors"])
def test_bytes_of_one_process_that_were_lost_are_named(train_toy, refused, file):
    given = ("--name", "one", "train.eval_items=0", "train.steps=1")
    assert train_toy(*given) == 0
    path = Path("runs/one/checkpoint", file)
    content = bytearray(path.read_bytes())
    begin = len(content) * 3 // 4
    content[begin : begin + 64] = bytes(64)
    path.write_bytes(content)
    line = refused(*given[:-1], "train.steps=2", "--resume")
    assert f"{path} cannot be read: " in line


def test_a_data_record_that_is_damaged_is_not_compared(train_toy):
    assert train_toy("--name", "one", "train.eval_items=0", "train.steps=1") == 0
    Path("runs/one/.wavalign-run.json").write_text('{"format": 1, "data": 7}')
    assert train_toy("--name", "one", "--resume", "train.eval_items=0", "train.steps=2") == 0


def test_a_judge_may_move_and_get_more_time_on_resume():
    """What the service options leave out decides the scores, and must stay."""
    kept = {"model", "mode", "rubric", "semantic_weight", "acoustic_weight", "audio", "text_model"}
    kept |= {"response_format", "samples", "temperature", "max_tokens", "body"}
    assert {*SERVICE_KEYS} == {*JudgeOptions.model_fields} - kept
    assert {f"task.judge.{key}" for key in SERVICE_KEYS} <= CHANGEABLE_ON_RESUME
