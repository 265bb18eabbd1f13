"""Checkpoints are whole or absent, and as many are kept as the config says."""

import json
import os
import shutil

import pytest
import torch

from wavalign_fast.errors import UserError
from wavalign_fast.train.checkpoint import CheckpointStore
from wavalign_fast.train.owned_files import CONTENTS_FILE
from wavalign_fast.train.policy import Policy


@pytest.fixture
def policy(toy_task):
    return Policy(toy_task().load_model())


@pytest.fixture
def optimizer(policy):
    return torch.optim.AdamW(policy.parameters(), lr=0.1)


def steps_kept(directory):
    return sorted(path.name for path in (directory / "checkpoints").glob("*"))


@pytest.mark.parametrize(("keep", "older"), [(1, []), (3, ["step-000003", "step-000004"])])
def test_the_newest_and_a_few_older_ones_are_kept(policy, optimizer, tmp_path, keep, older):
    store = CheckpointStore(tmp_path, keep)
    for step in range(1, 6):
        store.save(policy, optimizer, {"step": step})
    assert store.load(policy, optimizer)["step"] == 5
    assert steps_kept(tmp_path) == older
    assert not [path for path in tmp_path.iterdir() if "tmp" in path.name or "old" in path.name]


def test_a_save_that_fails_leaves_the_old_checkpoint(policy, optimizer, tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path)
    store.save(policy, optimizer, {"step": 1})

    def full_disk(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(UserError, match=r"step 2 cannot be written .* no space .* older one"):
        store.save(policy, optimizer, {"step": 2})
    assert store.load(policy, optimizer)["step"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("keep", [1, 2])
def test_a_crash_between_the_two_renames_loses_nothing(
    policy, optimizer, tmp_path, monkeypatch, keep
):
    store = CheckpointStore(tmp_path, keep)
    store.save(policy, optimizer, {"step": 1})
    replace = os.replace
    renames = []

    def crash_on_second(source, target):
        renames.append(source)
        if len(renames) == 2:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", crash_on_second)
    with pytest.raises(KeyboardInterrupt):
        store.save(policy, optimizer, {"step": 2})
    monkeypatch.undo()
    assert store.load(policy, optimizer)["step"] == 1


def test_of_several_checkpoints_the_latest_whole_one_is_recovered(policy, optimizer, tmp_path):
    store = CheckpointStore(tmp_path, keep=3)
    for step in (8, 9, 10, 1_000_001):
        store.save(policy, optimizer, {"step": step})
    # A crash before the second rename: the newest is gone, older ones and a half-removed one stay.
    shutil.rmtree(tmp_path / "checkpoint")
    shutil.copytree(tmp_path / "checkpoints" / "step-000009", tmp_path / "checkpoint.old")
    (tmp_path / "checkpoint.old" / "training_state.pt").unlink()
    assert store.load(policy, optimizer)["step"] == 10
    assert steps_kept(tmp_path) == ["step-000009"]


def test_steps_of_seven_digits_are_the_later_ones(policy, optimizer, tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    for step in (999_999, 1_000_000, 1_000_001):
        store.save(policy, optimizer, {"step": step})
    assert steps_kept(tmp_path) == ["step-1000000"]


def test_a_checkpoint_says_its_step_and_its_files(policy, optimizer, tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(policy, optimizer, {"step": 3})
    contents = json.loads((store.newest / CONTENTS_FILE).read_text())
    assert contents["step"] == 3
    assert sorted([*contents["files"], CONTENTS_FILE]) == sorted(os.listdir(store.newest))


def trained(policy, optimizer):
    for weight in policy.parameters():
        weight.grad = torch.randn_like(weight)
    optimizer.step()
    return policy, optimizer


def everything(policy, optimizer):
    """Weights and moments by name; copies."""
    moments = enumerate(optimizer.state_dict()["state"].values())
    return {
        **{name: weight.clone() for name, weight in policy.state_dict().items()},
        **{(n, key): value.clone() for n, entry in moments for key, value in entry.items()},
    }


def test_weights_moments_and_state_come_back_bit_for_bit(policy, optimizer, toy_task, tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(*trained(policy, optimizer), {"step": 1, "more": [1.5]})
    wanted = everything(policy, optimizer)
    trained(policy, optimizer)
    other = Policy(toy_task().load_model())
    for into in ((policy, optimizer), (other, torch.optim.AdamW(other.parameters(), lr=0.1))):
        assert store.load(*into)["more"] == [1.5]
        found = everything(*into)
        assert len(found) > 60 and found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_no_checkpoint_yet(policy, optimizer, tmp_path):
    assert CheckpointStore(tmp_path).load(policy, optimizer) is None


def test_no_code_of_a_state_file_is_run(policy, optimizer, tmp_path, monkeypatch, payload):
    monkeypatch.chdir(tmp_path)
    store = CheckpointStore(tmp_path)
    store.save(policy, optimizer, {"step": 1})
    for state in ({"format": 1, "step": payload}, [1, 2], {"format": 2}, torch.zeros(1)):
        torch.save(state, tmp_path / "checkpoint" / "training_state.pt")
        with pytest.raises(
            UserError, match=r"training_state\.pt.*(cannot be read|wanted 1)"
        ) as refusal:
            store.load_state()
        assert "weights_only" not in str(refusal.value)  # torch advises to run the code
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint"])
def test_a_damaged_state_is_named(policy, optimizer, tmp_path, damage):
    store = CheckpointStore(tmp_path)
    store.save(policy, optimizer, {"step": 1})
    (tmp_path / "checkpoint" / "training_state.pt").write_bytes(damage)
    with pytest.raises(UserError, match=r"training_state.pt cannot be read") as error:
        store.load_state()
    assert "\n" not in str(error.value)
