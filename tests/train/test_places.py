"""A place that cannot take a run is found before anything is computed, and nothing is lost."""

import errno
import os
import shutil

import pytest

from wavalign_fast.errors import UserError
from wavalign_fast.models import add_lora
from wavalign_fast.train import (
    arms,
    checkpoint,
    directory_lock,
    disk_space,
    metric_writers,
    owned_files,
)
from wavalign_fast.train.checkpoint import CheckpointStore

pytestmark = pytest.mark.usefixtures("toy_recipe", "no_report", "in_tmp_path")
LORA = ("model.lora.rank=2", "model.lora.head=true")
NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fail(*args, **kwargs):
    raise NO_SPACE


@pytest.fixture
def computed(monkeypatch):
    """Records the evaluations that were computed."""
    calls = []
    evaluate = arms.evaluate
    monkeypatch.setattr(arms, "evaluate", lambda *a: calls.append("eval") or evaluate(*a))
    return calls


@pytest.mark.parametrize(
    ("output", "name", "message"),
    [
        ("file", "x", "file is a file, wanted a directory"),
        (".", "file", "file: Not a directory; wanted a directory for a run"),
        (".", "dangling", "dangling is a link to nowhere"),
        (".", "x" * 300, "name: 'xxx"),
        ("y" * 300, "x", "File name too long"),
        ("/sys", "x", "cannot be made"),
        ("dangling", "x", "dangling is a link to nowhere"),
    ],
)
def test_a_place_that_is_no_directory(in_tmp_path, refused, computed, output, name, message):
    (in_tmp_path / "file").touch()
    (in_tmp_path / "dangling").symlink_to("nowhere")
    for more in ([], ["--overwrite"], ["--all-arms"]):
        assert message in refused("--output", output, "--name", name, *more)
    assert not computed and sorted(os.listdir()) == ["dangling", "file"]


def test_what_a_process_killed_at_once_leaves_is_no_run(in_tmp_path, train_toy):
    (in_tmp_path / "runs" / "one").mkdir(parents=True)
    for name in (".wavalign-123.tmp", directory_lock.LOCK_FILE):
        (in_tmp_path / "runs" / "one" / name).touch()
    assert train_toy("--name", "one", "train.steps=1", "train.eval_items=0") == 0


def test_a_resume_that_cannot_go_on_is_refused_before(in_tmp_path, refused, train_toy, computed):
    assert train_toy("--name", "one", "train.steps=3") == 0
    (in_tmp_path / "runs/one/evaluation.json").unlink()
    computed.clear()
    line = refused("--name", "one", "--resume", "train.steps=2")
    assert "train.steps: 2 given, runs/one is at step 3 already" in line
    metrics = in_tmp_path / "runs" / "one" / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('{"step": 2', '{"stp": 2'))
    line = refused("--name", "one", "--resume", "train.steps=4")
    assert "runs/one/metrics.jsonl:2: not a metrics record" in line and not computed


def test_a_finished_arm_is_left_alone_whatever_its_metrics(in_tmp_path, train_toy):
    assert train_toy("--arms", "both,sft", "--name", "two", "train.steps=1") == 0
    (in_tmp_path / "runs/two/sft/metrics.jsonl").write_text("damaged\n" * 3)
    assert train_toy("--arms", "both,sft", "--name", "two", "train.steps=1", "--resume") == 0


def test_a_report_that_cannot_be_written_is_found_before(in_tmp_path, refused, train_toy, computed):
    assert train_toy("--name", "one", "train.steps=1") == 0
    computed.clear()
    (in_tmp_path / "runs" / "one" / "report.html").mkdir()
    line = refused("--name", "one", "--overwrite", "train.steps=1")
    assert "report: runs/one/report.html: Is a directory" in line and not computed


def test_a_disk_without_room_for_the_checkpoints(in_tmp_path, refused, computed, monkeypatch):
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda path: usage._replace(free=30_000))
    keep = ("train.keep_checkpoints=3", "train.checkpoint_every=1")
    line = refused("--name", "one", "train.steps=2", *keep)
    assert "0 MiB free on its disk, wanted 4 MiB for 4 checkpoints of 1 MiB" in line
    assert not computed and os.listdir() == []


def test_the_exported_model_of_several_ranks_or_of_adapters_is_counted(
    toy_task, make_config, tmp_path, monkeypatch
):
    pytest.importorskip("peft")
    model = toy_task().load_model()
    whole = sum(weight.nbytes for weight in model.parameters())
    adapters = add_lora_to(toy_task().load_model(), rank=2)
    usage = shutil.disk_usage(".")

    def fits(free: int, world: int, *keys: str) -> bool:
        monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda _: usage._replace(free=free))
        try:
            disk_space.check_space([(make_config(*keys), tmp_path)], model, world)
        except UserError as error:
            assert ("and 1 exported models of 1 MiB" in str(error)) == (world > 1 or bool(keys))
            return False
        return True

    for wanted, *run in ((6 * whole, 1), (7 * whole, 2), (6 * adapters + whole, 1, *LORA)):
        assert fits(wanted, *run) and not fits(wanted - 1, *run)


def add_lora_to(model, rank: int) -> int:
    """Bytes of real adapters."""
    add_lora(model, rank=rank, alpha=1, targets=[], head=True, seed=0)
    return sum(weight.nbytes for weight in model.parameters() if weight.requires_grad)


def test_a_quota_or_a_limit_on_files(in_tmp_path, refused, computed, monkeypatch):
    monkeypatch.setattr(disk_space, "reserve", fail)
    line = refused("--name", "one")
    assert "runs/one does not take a checkpoint of 1 MiB: No space left on device" in line
    assert not computed and os.listdir() == []


def test_a_disk_too_full_for_the_lock(in_tmp_path, refused, computed, monkeypatch):
    monkeypatch.setattr(directory_lock.os, "pwrite", fail)
    assert "runs/one cannot be written: No space left on device" in refused("--name", "one")
    assert not computed and os.listdir() == []


@pytest.mark.parametrize(
    ("where", "name"),
    [
        (checkpoint.torch, "save"),
        (checkpoint, "sync_directory"),
        (checkpoint, "replace_directory"),
    ],
)
def test_a_disk_that_fills_up_leaves_the_last_checkpoint(
    in_tmp_path, refused, train_toy, monkeypatch, where, name
):
    every = ("--name", "one", "train.checkpoint_every=1")
    assert train_toy(*every, "train.steps=1") == 0
    monkeypatch.setattr(where, name, fail)
    line = refused(*every, "train.steps=3", "--resume")
    assert "checkpoint of step 2 cannot be written in runs/one: No space left on device" in line
    monkeypatch.undo()
    os.chdir(in_tmp_path)
    run = in_tmp_path / "runs" / "one"
    assert CheckpointStore(run).load_state()["step"] == 1
    assert not [path for path in os.listdir(run) if "tmp" in path or "old" in path]


def test_metrics_that_cannot_be_written_end_the_run_in_one_line(refused, monkeypatch):
    monkeypatch.setattr(metric_writers.JsonlWriter, "write", fail)
    assert "No space left on device" in refused("--name", "one")


@pytest.mark.parametrize("which", [[], ["--arms", "both,sft"]], ids=["one", "arms"])
def test_a_run_that_fails_before_its_first_step_leaves_nothing(
    refused, train_toy, monkeypatch, which
):
    with monkeypatch.context() as failing:
        failing.setattr(arms.Trainer, "_one_step", fail)
        assert "No space left on device" in refused("--name", "one", *which)
    assert os.listdir() == []
    assert train_toy("--name", "one", "train.steps=1") == 0


def test_an_arm_that_fails_to_start_anew_stays_recorded(
    in_tmp_path, refused, train_toy, monkeypatch
):
    arguments = ("--name", "one", "--arms", "both,sft", "train.steps=1")
    assert train_toy(*arguments) == 0
    before = (in_tmp_path / "runs/one" / owned_files.MARKER_FILE).read_text()
    monkeypatch.setattr(arms.Trainer, "_one_step", fail)
    assert "No space left on device" in refused(*arguments, "--overwrite")
    assert (in_tmp_path / "runs/one" / owned_files.MARKER_FILE).read_text() == before


@pytest.mark.parametrize("which", [[], ["--arms", "both,sft"]], ids=["one", "arms"])
def test_the_second_of_two_processes_is_refused(
    in_tmp_path, refused, train_toy, monkeypatch, which
):
    seen = []
    evaluate = arms.evaluate

    def meanwhile(*args):
        if not seen:
            seen.append("")
            for argv in (["--resume"], ["--overwrite"], []):
                seen.append(refused("--name", "one", *which, *argv))
        return evaluate(*args)

    monkeypatch.setattr(arms, "evaluate", meanwhile)
    assert train_toy("--name", "one", "train.steps=1", *which) == 0
    assert len(seen) == 4
    for line in seen[1:]:
        assert f"runs/one is in use by process {os.getpid()} on" in line, line
    assert not (in_tmp_path / "runs" / "one" / directory_lock.LOCK_FILE).exists()
