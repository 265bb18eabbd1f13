"""Ranks that would train different runs are stopped with a message that names the difference."""

import os

import pytest
import torch
import torch.distributed as dist

from tests.models.tiny import tiny_model
from tests.ranks import run_ranks
from wavalign_fast import cli, train_command
from wavalign_fast.errors import UserError
from wavalign_fast.train import ranks as ranks_module
from wavalign_fast.train import same_on_all
from wavalign_fast.train.ranks import Ranks
from wavalign_fast.train.trainer import Trainer


def ended_by(call):
    with pytest.raises(UserError) as ended:
        call()
    return [ended.type.__name__, str(ended.value)]


def trained_by_command(cases):
    """Runs the command once for each case, ``rank 0's words, rank 1's words``; returns the ends."""
    rank = dist.get_rank()
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    ranks_module.started_ranks = lambda timeout_s: _started()
    same_on_all.SEEN_WITHIN_S = 0.2
    common = ["train", "--recipe", "toy", "train.steps=1", "train.eval_items=0"]
    words = [[*common, *case[rank]] for case in cases]
    return [ended_by(lambda: train_command.train(cli._parse(w), w)) for w in words]  # noqa: B023


class _started:
    def __enter__(self):
        return Ranks(dist.get_rank(), dist.get_world_size())

    def __exit__(self, *_):
        return None


@pytest.mark.usefixtures("toy_recipe", "no_report")
def test_settings_and_directory_are_the_same_on_all_ranks(in_tmp_path):
    cases = {
        "optimizer.lr: 0.003 given on rank 0 and 0.5 on rank 1; wanted the same on every rank": (
            [], ["optimizer.lr=0.5"],
        ),
        "name: 'one' given on rank 0 and 'two' on rank 1; wanted": (
            ["--name", "one"], ["--name", "two"],
        ),
        "--overwrite: False given on rank 0 and True on rank 1; wanted": ([], ["--overwrite"]),
        "1 runs on rank 0 and 2 on rank 1; wanted": ([], ["--arms", "rl,sft"]),
        f"rank 1 does not see {in_tmp_path}/there/toy-both/.wavalign-lock, which rank 0 has": (
            ["--output", "here"], ["--output", "there"],
        ),
    }  # fmt: skip
    main, other = run_ranks(2, trained_by_command, list(cases.values()))
    for message, on_main, on_other in zip(cases, main, other, strict=True):
        kinds = {on_main[0], on_other[0]}
        assert kinds == {"UserError", "OtherRankError"}
        assert message in on_main[1] and message in on_other[1]
    assert os.listdir() == []


def started_with(task, config, folders):
    rank = dist.get_rank()
    model = config.model.model_copy(update={"path": str(folders[rank])})
    config = config.model_copy(update={"model": model})
    return ended_by(lambda: Trainer(config, task, folders[rank] / "run", Ranks(rank, 2)))


@pytest.mark.parametrize("lora", [[], ["model.lora.rank=2"]], ids=["in shards", "whole"])
def test_all_ranks_start_from_the_same_weights(toy_task, make_config, tmp_path, lora):
    folders = [tmp_path / "a", tmp_path / "b"]
    model = tiny_model(torch.float32, vocab_size=24)
    model.save_pretrained(folders[0])
    model.lm_head.weight.data[12] += 1e-3
    model.save_pretrained(folders[1])
    for _, message in run_ranks(2, started_with, toy_task(), make_config(*lora), folders):
        assert "model: lm_head.weight on rank 1 is not that on rank 0; wanted" in message


def compared(data):
    same_on_all.check_same_data(data[0], Ranks(dist.get_rank(), 2))
    return ended_by(
        lambda: same_on_all.check_same_data(data[dist.get_rank()], Ranks(dist.get_rank(), 2))
    )


def test_all_ranks_have_the_same_training_data():
    data = [{"examples": 3, "sha256": "a"}, {"examples": 3, "sha256": "b"}]
    for _, message in run_ranks(2, compared, data):
        assert "training data: 3 examples on rank 0 and 3 on rank 1, contents differ" in message


def with_files(folders):
    rank = dist.get_rank()
    os.chdir(folders[rank])
    settings = {
        "reward": "score.py:score",
        "prompts": {"files": ["same.jsonl", "other.jsonl"]},
        "only": "first.json",
        "no file": "score",
    }
    same = {**settings, "prompts": {"files": ["same.jsonl"]}, "reward": "package.module:score"}
    ranks = Ranks(rank, 2)
    same_on_all.check_same_files([same], ranks)
    one, two = {**same, "reward": settings["reward"]}, {**same, "prompts": settings["prompts"]}
    calls = [lambda s=s: same_on_all.check_same_files([same, s], ranks) for s in (one, two)]
    return [ended_by(call)[1] for call in calls]


def test_all_ranks_have_the_same_files_of_the_task(tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    for n, folder in enumerate(folders):
        folder.mkdir()
        (folder / "same.jsonl").write_text("{}")
        (folder / "score.py").write_text(f"def score(answers): return [{n}.0] * len(answers)")
        (folder / "other.jsonl").write_text(f"{{}}{n}")
    (folders[0] / "first.json").write_text("{}")
    for reward, data in run_ranks(2, with_files, folders):
        assert f"reward: score.py: {folders[0] / 'score.py'} on rank 0 and " in reward
        assert f"{folders[1] / 'score.py'} on rank 1 differ in content; wanted" in reward
        assert "prompts.files: other.jsonl: " in data
