"""Checkpoints of several ranks: any number saves, any number goes on, and one failure is all's."""

import errno
import os
import pickle
import shutil
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.ranks import run_ranks
from wavalign_fast.config.parallel import ParallelConfig
from wavalign_fast.errors import DamagedFileError, OtherRankError, UserError
from wavalign_fast.train import checkpoint, checkpoint_layouts, sharded_files
from wavalign_fast.train.checkpoint import CheckpointStore
from wavalign_fast.train.owned_files import checkpoint_contents
from wavalign_fast.train.policy import Policy, wrapped
from wavalign_fast.train.ranks import Ranks

LR = 0.1


def model_of(tied: bool = False, hidden: int = 16):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=24,
        hidden_size=hidden,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    return Qwen2ForCausalLM(config)


class Run:
    """A tiny model on the ranks of this process, and what is saved of it."""

    def __init__(
        self, place: str, *, replicate: int = 1, aside: bool = False, model=None, **shape
    ) -> None:
        inside = dist.is_initialized()
        self.ranks = Ranks(dist.get_rank(), dist.get_world_size()) if inside else Ranks()
        self.policy = Policy(model or model_of(**shape))
        wrapped(self.policy, ParallelConfig(replicate=replicate), self.ranks)
        self.optimizer = torch.optim.AdamW(
            [weight for weight in self.policy.parameters() if weight.requires_grad],
            lr=LR,
            fused=True,
        )
        self.store = CheckpointStore(Path(place), ranks=self.ranks, aside=aside)

    def train(self, step: int) -> None:
        """A step over the same tokens at any world: rank 0 has them, the others have a dummy."""
        torch.manual_seed(step)
        ids = torch.randint(24, (2, 9))
        scale = float(self.ranks.is_main)
        loss = self.policy([ids], lambda hidden, weight, bias: (hidden @ weight.T).square().mean())
        (loss * scale).backward()
        for group in self.optimizer.param_groups:
            group["lr"] = LR
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def save(self, step: int) -> None:
        self.store.save(self.policy, self.optimizer, {"step": step})

    def load(self) -> dict | None:
        return self.store.load(self.policy, self.optimizer)

    def state(self) -> dict[str, torch.Tensor]:
        """Weights and moments as whole tensors; copies."""
        live = checkpoint_layouts.weights_of(self.policy)
        live |= checkpoint_layouts.moments_of(self.policy, self.optimizer)
        return {name: checkpoint_layouts.whole(value).clone() for name, value in live.items()}


def saved(place: str, tied: bool, replicate: int = 1) -> dict:
    """Two steps, a checkpoint, two more: the run that nothing disturbed."""
    run = Run(place, tied=tied, replicate=replicate)
    run.train(1)
    run.train(2)
    run.save(2)
    at_save = run.state()
    run.train(3)
    return {"at save": at_save, "at end": run.state()}


def resumed(place: str, tied: bool, replicate: int = 1) -> dict:
    run = Run(place, tied=tied, replicate=replicate)
    run.train(7)  # whatever was there is replaced
    state = run.load()
    at_load = run.state()
    run.train(3)
    return {"step": state["step"], "at load": at_load, "at end": run.state()}


def on(world: int, function, *args):
    """The result of rank 0 of ``world`` ranks; of one process without a group."""
    return function(*args) if world == 1 else run_ranks(world, function, *args)[0]


def same_bits(found: dict, wanted: dict) -> bool:
    assert found.keys() == wanted.keys()
    return all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(
    ("world", "tied", "replicate", "others"),
    [(1, False, 1, (2, 4)), (2, True, 1, (1, 2, 4)), (4, False, 2, (1, 2, 4))],
)
def test_saved_at_any_world_goes_on_at_any_other(tmp_path, world, tied, replicate, others):
    wanted = on(world, saved, str(tmp_path), tied, replicate)
    assert len(wanted["at save"]) > 60
    for other in others:
        found = on(other, resumed, str(tmp_path), tied, replicate if other == world else 1)
        assert found["step"] == 2
        assert same_bits(found["at load"], wanted["at save"])
        if other == world:
            assert same_bits(found["at end"], wanted["at end"])
        for name, value in wanted["at end"].items():
            torch.testing.assert_close(found["at end"][name], value, rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def of_two(tmp_path_factory) -> tuple[Path, dict]:
    """A checkpoint of two ranks, and what it must hold."""
    place = tmp_path_factory.mktemp("two")
    return place, on(2, saved, str(place), False)["at save"]


def damaged(of_two, tmp_path, damage) -> Run:
    place = tmp_path / "run"
    shutil.copytree(of_two[0], place)
    damage(place / "checkpoint")
    return Run(str(place))


def halved(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda it: (it / "weights/__1_0.distcp").unlink(), "weights/__1_0.distcp is missing"),
        (lambda it: halved(it / "optimizer/__0_0.distcp"), "optimizer/__0_0.distcp has .* truncat"),
        (lambda it: halved(it / "weights/.metadata"), r"weights/.metadata cannot be read"),
        (lambda it: (it / "optimizer/.metadata").unlink(), r"optimizer/.metadata cannot be read"),
        (lambda it: halved(it / "training_state.pt"), "training_state.pt cannot be read"),
        (lambda it: (it / "training_state.pt").unlink(), "training_state.pt is missing"),
    ],
)
def test_a_part_that_is_missing_or_damaged_is_named(of_two, tmp_path, damage, said):
    with pytest.raises(DamagedFileError, match=said) as error:
        damaged(of_two, tmp_path, damage).load()
    assert "\n" not in str(error.value)


def loads(place: str) -> str:
    """What a resume of this rank raises."""
    try:
        Run(place).load()
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("name", ["weights/__1_0.distcp", "optimizer/__0_0.distcp"])
def test_bytes_that_were_lost_are_named(of_two, tmp_path, name, world):
    """The middle of a file is in the values of a tensor, where nothing else would notice zeros."""

    def lose(checkpoint):
        content = bytearray((checkpoint / name).read_bytes())
        begin = len(content) // 2
        content[begin : begin + 64] = bytes(64)
        (checkpoint / name).write_bytes(content)

    damaged(of_two, tmp_path, lose)
    place = str(tmp_path / "run")
    said = [loads(place)] if world == 1 else run_ranks(world, loads, place)
    assert all(f"{name} cannot be read: its contents are not those" in line for line in said)
    (tmp_path / "run/checkpoint/contents.json").unlink()  # as in a checkpoint without checksums
    assert loads(place) == ""


def test_bytes_that_are_no_tensor_are_named(of_two, tmp_path):
    def garble(checkpoint):
        file = checkpoint / "weights/__1_0.distcp"
        file.write_bytes(bytes(file.stat().st_size))
        (checkpoint / "contents.json").unlink()

    with pytest.raises(DamagedFileError, match=r"weights cannot be read: rank 0: "):
        damaged(of_two, tmp_path, garble).load()


def test_no_code_of_a_metadata_file_is_run(of_two, tmp_path, payload, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for harm in (payload, os.system, os.path.join, AsIfOfDcp()):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        run = damaged(
            of_two, tmp_path, lambda it, harm=harm: pickled(harm, it / "weights/.metadata")
        )
        with pytest.raises(DamagedFileError, match="which DCP's metadata does not"):
            run.load()
    assert not (tmp_path / "harm").exists()


class AsIfOfDcp:
    """A pickle that reaches ``os`` through a module of DCP's."""

    def __reduce__(self):
        return os.mkdir, ("harm",)


def pickled(value, path: Path) -> None:
    content = pickle.dumps(value, protocol=4)
    if isinstance(value, AsIfOfDcp):
        place = b"torch.distributed.checkpoint.filesystem"
        content = content.replace(
            b"\x8c\x05posix\x94\x8c\x05mkdir",
            b"\x8c" + bytes([len(place)]) + place + b"\x94\x8c\x08os.mkdir",
        )
        # Without the length of the frame, which is another one now.
        content = content[:2] + content[11:]
    path.write_bytes(content)


def test_a_checkpoint_of_another_model_is_refused_before_it_is_loaded(of_two):
    run = Run(str(of_two[0]), hidden=32)
    before = run.state()
    with pytest.raises(
        UserError, match=r"another model: model.embed\S+ is \(24, 16\), wanted \(24, 32\)"
    ):
        run.load()
    assert same_bits(run.state(), before)


def test_a_run_whose_steps_were_all_skipped_has_no_moments(tmp_path):
    def function(place):
        run = Run(place)
        run.save(1)
        return [run.load()["step"], len(run.optimizer.state)]

    assert on(2, function, str(tmp_path)) == [1, 0]


def refusals(place: str) -> tuple[list[str], list[bool]]:
    """What this rank is told when one rank alone cannot write, and when one cannot read.

    And whether it is the rank that reports it.
    """
    run = Run(place)
    run.train(1)
    run.save(1)
    found, reports = [], []

    def refused(call) -> None:
        try:
            call()
        except UserError as error:
            found.append(str(error))
            reports.append(not isinstance(error, OtherRankError))

    for rank in (1, 0):
        with pytest.MonkeyPatch.context() as patch:
            if run.ranks.rank == rank:
                patch.setattr(torch, "save", full_disk)
            refused(lambda: run.save(2))
    with pytest.MonkeyPatch.context() as patch:
        if run.ranks.is_main:
            patch.setattr(checkpoint, "replace_directory", full_disk)
        refused(lambda: run.save(2))
    with pytest.MonkeyPatch.context() as patch:
        if run.ranks.rank == 1:  # as on a machine with another disk
            patch.setattr(Path, "is_dir", lambda it: False)
        refused(lambda: run.save(2))
    with pytest.MonkeyPatch.context() as patch:
        if run.ranks.rank == 1:
            patch.setattr(checkpoint_layouts, "saved_tensors", full_disk)
        refused(run.load)
    with pytest.MonkeyPatch.context() as patch:
        if run.ranks.rank == 1:
            patch.setattr(sharded_files.FileSystemReader, "read_data", full_disk)
        refused(run.load)
    found.append(f"step {run.load()['step']}, {sorted(os.listdir(place))}")
    return found, reports


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_one_rank_cannot_do_is_an_error_on_all(tmp_path):
    (one, reports), (other, others_report) = run_ranks(2, refusals, str(tmp_path))
    # Of a failed save: DCP's error by rank 0, any other by the rank that it is of.
    assert (reports[:4], others_report[:4]) == (
        [True, True, True, False],
        [False, False, False, True],
    )
    for found in (one, other):
        *saves, unseen, load, read, after = found
        assert "rank 1 does not see" in unseen and "wanted a directory that all" in unseen
        assert len(saves) == 3
        for line in saves:
            assert line.startswith(f"checkpoint of step 2 cannot be written in {tmp_path}: ")
            assert "No space left on device; an older one is unchanged" in line
        assert "rank 1: No space" in saves[0] and "rank 0: No space" in saves[1]
        assert "No space left" in load and "rank 1: No space left" in read
        assert after == "step 1, ['checkpoint']"


def aside(place: str) -> list[bool]:
    run = Run(place, aside=True)
    run.train(1)
    found = []
    for step in (2, 3):
        at_save = run.state()
        run.save(step)
        run.train(step)
        run.store.finish()
        moved = run.state()
        found += [run.load()["step"] == step, same_bits(run.state(), at_save)]
        found += [not same_bits(moved, at_save)]
        found += [run.ranks.world == 1 or not (run.store.newest / "config.json").exists()]
    return found


@pytest.mark.parametrize("world", [1, 2])
def test_what_is_written_aside_is_the_state_at_the_call(tmp_path, world):
    assert on(world, aside, str(tmp_path)) == [True] * 8


def test_the_next_save_waits_for_the_last_one_and_says_that_it_failed(tmp_path, monkeypatch):
    run = Run(str(tmp_path), aside=True)
    order, save = [], checkpoint.replace_directory

    def slow(*args):
        time.sleep(0.1)
        order.append("written")
        save(*args)

    monkeypatch.setattr(checkpoint, "replace_directory", slow)
    run.save(1)
    order.append("returned")
    run.save(2)
    run.store.finish()
    assert order == ["returned", "written", "written"] and run.load()["step"] == 2
    monkeypatch.setattr(checkpoint, "replace_directory", full_disk)
    run.save(3)
    with pytest.raises(UserError, match="checkpoint of step 3 cannot be written"):
        run.save(4)
    run.store.finish()
    assert run.load()["step"] == 2


def test_a_run_ends_when_its_last_checkpoint_is_written(train, tmp_path, monkeypatch):
    replace = checkpoint.replace_directory

    def slow(*args):
        time.sleep(0.2)
        replace(*args)

    monkeypatch.setattr(checkpoint, "replace_directory", slow)
    train("train.async_checkpoint=true", "train.steps=1")
    assert checkpoint_contents(tmp_path / "run" / "checkpoint")["step"] == 1
    monkeypatch.setattr(checkpoint, "replace_directory", full_disk)
    with pytest.raises(UserError, match="checkpoint of step 2 cannot be written"):
        train("train.async_checkpoint=true", "train.steps=2")


def test_what_ended_a_run_is_raised_even_if_its_last_save_failed(tmp_path, monkeypatch, caplog):
    run = Run(str(tmp_path), aside=True)
    monkeypatch.setattr(checkpoint, "replace_directory", full_disk)
    with pytest.raises(KeyError, match="the news"), run.store.finishing():
        run.save(1)
        raise KeyError("the news")
    assert "checkpoint of step 1 cannot be written" in caplog.text
