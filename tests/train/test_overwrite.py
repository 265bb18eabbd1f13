"""``--overwrite`` removes only files that this program wrote."""

import json
import os
import shutil

import pytest
import yaml

from wavalign_fast.config.layers import dump_config
from wavalign_fast.train import arms
from wavalign_fast.train.checkpoint import CheckpointStore
from wavalign_fast.train.owned_files import (
    MARKER_FILE,
    drop_replaced,
    own_paths,
    put_back,
    set_aside,
)
from wavalign_fast.train.trainer import Trainer

pytestmark = pytest.mark.usefixtures("toy_recipe", "no_report", "in_tmp_path")
SHORT = ("train.steps=1", "train.eval_items=1")


def tree(directory):
    """Every file below a directory, with its content."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def seed_of(run):
    return yaml.safe_load((run / "config.yaml").read_text())["train"]["seed"]


@pytest.fixture
def run(in_tmp_path, train_toy):
    """A finished run in ``runs/one``."""
    assert train_toy("--name", "one", *SHORT) == 0
    return in_tmp_path / "runs" / "one"


@pytest.mark.parametrize(
    ("config", "text"),
    [("conf/config.yaml", "port: 80\n"), ("config.yaml", "port: 80\n"), ("config.yaml", "whole")],
)
def test_a_folder_of_somebody_else_is_refused(in_tmp_path, refused, make_config, config, text):
    file = in_tmp_path / "app" / config
    file.parent.mkdir(parents=True)
    # Even a config that this program printed does not make a folder a run.
    file.write_text(dump_config(make_config()) if text == "whole" else text)
    (in_tmp_path / "app" / "thesis.txt").write_text("years of work")
    before = tree(in_tmp_path)
    line = refused("--output", ".", "--name", "app", "--overwrite", *SHORT)
    assert "app is not a run directory" in line
    refused("--output", ".", "--name", "app", "--all-arms", *SHORT)
    refused("--output", ".", "--name", "app", *SHORT)
    assert tree(in_tmp_path) == before


def test_a_folder_of_runs_is_no_run(run, refused, in_tmp_path):
    before = tree(in_tmp_path)
    refused("--output", ".", "--name", "runs", "--overwrite", *SHORT)
    assert tree(in_tmp_path) == before


def test_what_lies_beside_our_files_stays(run, train_toy):
    names = ["thesis.txt", "notes/thesis.txt", "config.yaml.bak", ".hidden", "evaluation.json.old"]
    (run / "notes").mkdir()
    for name in names:
        (run / name).write_text("years of work")
    assert train_toy("--name", "one", "--overwrite", "train.seed=9", *SHORT) == 0
    assert {(run / name).read_text() for name in names} == {"years of work"}
    assert seed_of(run) == 9


def test_what_lies_among_our_files_is_named_and_nothing_is_touched(run, refused):
    within = ["checkpoint/notes.txt", "wav/mine.wav", "tensorboard/plot.png", "checkpoint/sub/x"]
    for name in [*within, "checkpoints/mine", "checkpoints/step-000001/x"]:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("years of work")
        before = tree(run)
        line = refused("--name", "one", "--overwrite", "train.seed=9", *SHORT)
        assert f"runs/one/{name.removesuffix('/x') if 'sub' in name else name} is not" in line
        assert tree(run) == before
        (run / name).unlink()
        shutil.rmtree(run / "checkpoint" / "sub", ignore_errors=True)


def test_every_file_of_a_run_is_ours(run, train_toy, in_tmp_path):
    keep = ("train.keep_checkpoints=3", "train.checkpoint_every=1", "train.steps=4")
    assert train_toy("--name", "kept", "train.eval_items=1", *keep) == 0
    assert train_toy("--name", "arms", "--all-arms", *SHORT) == 0
    (run / ".checkpoint.tmp").mkdir()  # what a killed process leaves
    (run / ".checkpoint.tmp" / "half").touch()
    (run / ".wavalign-123.tmp").touch()
    for name in ("one", "kept", "arms"):
        folder = in_tmp_path / "runs" / name
        assert tree(folder)
        for path in own_paths(folder):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        assert tree(folder) == {}


def test_arms_go_with_their_folder_but_for_what_is_not_ours(in_tmp_path, train_toy):
    assert train_toy("--name", "all", "--arms", "sft,both", *SHORT) == 0
    root = in_tmp_path / "runs" / "all"
    (root / "sft" / "thesis.txt").write_text("years of work")
    (root / "report.html").write_text("page")
    assert train_toy("--name", "all", "--arm", "rl", "--overwrite", *SHORT) == 0
    assert not (root / "both").exists() and not (root / "report.html").exists()
    assert list(tree(root / "sft")) == ["thesis.txt"] and seed_of(root) == 0


def test_arms_are_not_put_into_a_run_of_one(run, refused):
    before = tree(run)
    line = refused("--name", "one", "--arms", "sft,both", "--overwrite", *SHORT)
    assert "runs/one is a run of one arm" in line and tree(run) == before


def test_a_linked_run_stays_linked(in_tmp_path, train_toy):
    (in_tmp_path / "scratch").mkdir()
    (in_tmp_path / "linked").symlink_to("scratch")
    for seed in ("3", "4"):
        argv = ("--output", ".", "--name", "linked", "--overwrite", "--seed", seed)
        assert train_toy(*argv, *SHORT) == 0
    assert (in_tmp_path / "linked").is_symlink() and seed_of(in_tmp_path / "scratch") == 4


def test_a_linked_checkpoint_is_unlinked_and_its_target_stays(run, train_toy, in_tmp_path):
    os.rename(run / "checkpoint", in_tmp_path / "elsewhere")
    (run / "checkpoint").symlink_to(in_tmp_path / "elsewhere")
    before = tree(in_tmp_path / "elsewhere")
    assert train_toy("--name", "one", "--overwrite", "train.seed=9", *SHORT) == 0
    assert tree(in_tmp_path / "elsewhere") == before
    assert (run / "checkpoint").is_dir() and not (run / "checkpoint").is_symlink()


def test_a_linked_checkpoint_can_be_gone_on_from(run, train_toy, in_tmp_path):
    os.rename(run / "checkpoint", in_tmp_path / "elsewhere")
    (run / "checkpoint").symlink_to(in_tmp_path / "elsewhere")
    more = ("train.steps=3", "train.checkpoint_every=1", "train.eval_items=1")
    assert train_toy("--name", "one", "--resume", *more) == 0
    assert CheckpointStore(run).load_state()["step"] == 3


def test_a_start_that_fails_gives_the_old_run_back(run, refused, monkeypatch):
    def fail(self, *args, **options):
        raise ValueError("no such weights")

    before = tree(run)
    monkeypatch.setattr(Trainer, "__init__", fail)
    with pytest.raises(ValueError, match="no such weights"):
        refused("--name", "one", "--overwrite", "train.seed=9", *SHORT)
    assert tree(run) == before


def test_what_was_set_aside_comes_back_with_its_arms(in_tmp_path, train_toy):
    assert train_toy("--name", "all", "--arms", "sft,both", *SHORT) == 0
    root = in_tmp_path / "runs" / "all"
    before = tree(root)
    set_aside(root)
    assert not (root / "sft").exists() and not (root / MARKER_FILE).exists()
    (root / "config.yaml").write_text("half a start")
    put_back(root)
    assert tree(root) == before


def test_a_process_killed_while_it_overwrites_loses_nothing(run, train_toy, monkeypatch):
    class Killed(BaseException):
        """Passes every handler of ours."""

    def kill(*args, **kwargs):
        raise Killed

    before = tree(run)
    with monkeypatch.context() as patch:
        patch.setattr(arms, "put_back", lambda run: None)
        patch.setattr(arms, "drop_replaced", kill)
        with pytest.raises(Killed):
            train_toy("--name", "one", "--overwrite", "train.seed=9", *SHORT)
    assert seed_of(run) == 9
    assert train_toy("--name", "one", "--resume", *SHORT) == 0
    assert tree(run) == before


@pytest.mark.parametrize("again", ["--overwrite", "--resume"])
def test_half_written_files_of_a_killed_process_go_away(run, train_toy, again):
    (run / "wav").mkdir(exist_ok=True)
    left = [run / ".wavalign-7.tmp", run / "wav" / ".wavalign-8.tmp"]
    for path in left:
        path.write_bytes(b"half")
    (run / "evaluation.json").unlink()  # so that the run goes on
    assert train_toy("--name", "one", again, *SHORT) == 0
    assert not any(path.exists() for path in left)


def test_what_is_left_of_an_overwritten_run_is_ours(run):
    set_aside(run)
    os.replace(run / ".replaced", run / ".dropped")
    assert own_paths(run) == [run / ".dropped"]
    drop_replaced(run)
    assert tree(run) == {}


def test_the_marker_says_which_arms_there_are(in_tmp_path, train_toy):
    assert train_toy("--name", "all", "--arms", "sft,both", *SHORT) == 0
    marker = json.loads((in_tmp_path / "runs" / "all" / MARKER_FILE).read_text())
    assert marker == {"format": 1, "arms": ["sft", "both"]}


@pytest.mark.parametrize(
    "arms", [5, "sft", None, ["../other"], [".."], ["."], [""], [3, None, ["a"]], {"a": 1}]
)
def test_a_damaged_marker_never_leads_out_of_its_run(run, train_toy, in_tmp_path, arms):
    shutil.copytree(run, in_tmp_path / "runs" / "other")
    before = tree(in_tmp_path / "runs" / "other")
    (run / MARKER_FILE).write_text(json.dumps({"format": 1, "arms": arms}))
    assert train_toy("--name", "one", "--overwrite", "train.seed=9", *SHORT) == 0
    assert tree(in_tmp_path / "runs" / "other") == before and seed_of(run) == 9


@pytest.mark.parametrize("files", [5, None, [["a"]], "config.json"])
def test_a_checkpoint_with_a_damaged_list_of_files_is_not_overwritten(run, refused, files):
    (run / "checkpoint" / "contents.json").write_text(json.dumps({"step": 1, "files": files}))
    before = tree(run)
    assert "is not a file of this program" in refused("--name", "one", "--overwrite", *SHORT)
    assert tree(run) == before


@pytest.mark.parametrize("again", [[], ["--resume"]])
def test_one_arm_beside_several_says_how_to_go_on(in_tmp_path, train_toy, refused, again):
    assert train_toy("--name", "all", "--arms", "sft,both", *SHORT) == 0
    line = refused("--name", "all", "--arm", "sft", *again, *SHORT)
    assert "runs/all holds several arms (sft, both); give --arms" in line
