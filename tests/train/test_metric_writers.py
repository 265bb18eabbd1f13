"""Metrics are written in whole lines, and to TensorBoard if it works."""

import json
import logging
import sys
from types import SimpleNamespace

import pytest
import torch

from wavalign_fast.errors import UserError
from wavalign_fast.train import metric_writers
from wavalign_fast.train.metric_writers import JsonlWriter, TensorBoardWriter, open_tensorboard
from wavalign_fast.train.step_metrics import completion_metrics


@pytest.fixture(autouse=True)
def nothing_said_yet():
    metric_writers._warn_once.cache_clear()


class Events:
    """Stands in for TensorBoard's writer."""

    def __init__(self, directory, purge_step):
        self.directory, self.purge_step = directory, purge_step
        self.scalars, self.closed = [], False

    def add_scalar(self, name, value, step):
        self.scalars.append((name, value, step))

    def close(self):
        self.closed = True


def test_tensorboard_gets_every_metric_at_its_step(tmp_path):
    writer = TensorBoardWriter(Events, tmp_path, step=4)
    events = writer._writer
    writer.write(5, 1.5, {"kl": 0.5, "lr": 0.1})
    writer.write(6, 3.0, {"kl": 0.25})
    writer.close()
    assert events.scalars == [("kl", 0.5, 5), ("lr", 0.1, 5), ("kl", 0.25, 6)]
    assert (events.purge_step, events.closed, events.directory) == (5, True, str(tmp_path))
    assert TensorBoardWriter(Events, tmp_path, step=0)._writer.purge_step is None


@pytest.mark.parametrize("failing", ["__init__", "add_scalar", "close"])
def test_a_tensorboard_that_fails_is_said_once_and_ends_nothing(
    tmp_path, caplog, monkeypatch, failing
):
    def fail(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Events, failing, fail)
    writer = TensorBoardWriter(Events, tmp_path, step=0)
    for step in (1, 2):
        writer.write(step, 0.0, {"kl": 1.0})
    writer.close()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "No space left on device" in record.message


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ModuleNotFoundError("no tensorboard"), "tensorboard is not installed"),
        (ImportError("needs 2.19"), "cannot be imported (ImportError: needs 2.19)"),
        (OSError("libstdc++.so.6: version not found"), "(OSError: libstdc++.so.6"),
        (AttributeError("module 'numpy' has no 'bool8'"), "(AttributeError: module 'numpy'"),
        (RuntimeError("protobuf"), "(RuntimeError: protobuf)"),
        (SystemExit(1), "(SystemExit: 1)"),
    ],
)
def test_a_tensorboard_that_cannot_be_imported_is_done_without(
    tmp_path, failing_import, caplog, error, words
):
    failing_import("torch.utils.tensorboard", error)
    for arm in ("one", "two"):
        assert open_tensorboard(tmp_path / arm, 0) is None
    (record,) = caplog.records  # once for both arms
    assert words in record.message and "metrics go to metrics.jsonl only" in record.message


def test_ctrl_c_during_an_import_is_no_missing_package(tmp_path, monkeypatch):
    class Interrupting:
        def find_spec(self, name, path=None, target=None):
            if name == "torch.utils.tensorboard":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.delattr(torch.utils, "tensorboard", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Interrupting(), *sys.meta_path])
    with pytest.raises(KeyboardInterrupt):
        open_tensorboard(tmp_path, 0)


def test_a_full_disk_is_one_line(tmp_path):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    writer = JsonlWriter.__new__(JsonlWriter)
    writer._path = tmp_path / "metrics.jsonl"
    writer._file = writer._path.open("a", encoding="utf-8")
    with pytest.raises(UserError, match=r"metrics.jsonl cannot be written: No space left"):
        writer.write(1, 0.0, {"kl": 1.0})
    writer.close()


def lines(*steps):
    return b"".join(json.dumps({"step": step}).encode() + b"\n" for step in steps)


@pytest.mark.parametrize(
    "end",
    [b"", b'{"step": 4, "k', b"\x00" * 64, b"\xff\xfe{", b"[1]\n", b'{"step": 4, "k\n', b"\n"],
)
def test_a_damaged_end_is_cut_off(tmp_path, end):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(lines(1, 2, 3) + end)
    JsonlWriter(path, 2).close()
    assert path.read_bytes() == lines(1, 2)


@pytest.mark.parametrize(
    "damage", [b"\x00\x00", b"\xff\xfe", b"{}", b"3", b'{"step": "x"}', b"[" * 100_000]
)
def test_damage_elsewhere_is_named_with_its_line(tmp_path, damage):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(lines(1) + damage + b"\n" + lines(3))
    with pytest.raises(UserError, match=r"metrics.jsonl:2: not a metrics record") as error:
        JsonlWriter(path, 3)
    assert len(str(error.value)) < 500 and "\n" not in str(error.value)


def test_length_and_the_share_cut_off_by_the_limit():
    done = [SimpleNamespace(ids=(1,) * length, ended=length < 8) for length in (2, 8, 8, 6, 8)]
    values = {name: value.item() for name, value in completion_metrics(done).items()}
    assert values["completion_length"] == pytest.approx(6.4)
    assert values["completion_clipped"] == pytest.approx(0.6)
    assert completion_metrics([]) == {}
