"""Checkpoints are whole or absent, and as many are kept as asked for."""

import os

import pytest
import torch

from wavalign_fast.errors import UserError
from wavalign_fast.train.checkpoint import CheckpointStore


@pytest.fixture
def model(toy_task):
    return toy_task().load_model()


def steps_kept(directory):
    return sorted(path.name for path in (directory / "checkpoints").glob("*"))


@pytest.mark.parametrize(("keep", "older"), [(1, []), (3, ["step-000003", "step-000004"])])
def test_the_newest_and_a_few_older_ones_are_kept(model, tmp_path, keep, older):
    store = CheckpointStore(tmp_path, keep)
    for step in range(1, 6):
        store.save(model, {"step": step})
    assert store.load_state()["step"] == 5
    assert steps_kept(tmp_path) == older
    assert not [path for path in tmp_path.iterdir() if "tmp" in path.name or "old" in path.name]


def test_a_save_that_fails_leaves_the_old_checkpoint(model, tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path)
    store.save(model, {"step": 1})

    def full_disk(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="no space"):
        store.save(model, {"step": 2})
    assert store.load_state()["step"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("keep", [1, 2])
def test_a_crash_between_the_two_renames_loses_nothing(model, tmp_path, monkeypatch, keep):
    store = CheckpointStore(tmp_path, keep)
    store.save(model, {"step": 1})
    replace = os.replace
    renames = []

    def crash_on_second(source, target):
        renames.append(source)
        if len(renames) == 2:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", crash_on_second)
    with pytest.raises(KeyboardInterrupt):
        store.save(model, {"step": 2})
    monkeypatch.undo()
    assert store.load_state()["step"] == 1


def test_no_checkpoint_yet(tmp_path):
    assert CheckpointStore(tmp_path).load_state() is None


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint"])
def test_a_damaged_state_is_named(model, tmp_path, damage):
    store = CheckpointStore(tmp_path)
    store.save(model, {"step": 1})
    (tmp_path / "checkpoint" / "training_state.pt").write_bytes(damage)
    with pytest.raises(UserError, match=r"training_state.pt cannot be read") as error:
        store.load_state()
    assert "\n" not in str(error.value)
