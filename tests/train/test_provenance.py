"""A run records when, where and how it was started, and keeps the answers of its base."""

import json
import subprocess
from datetime import datetime, timedelta, timezone

import pytest

from wavalign_fast import checkout
from wavalign_fast.train import provenance
from wavalign_fast.train.provenance import record_start

pytestmark = pytest.mark.usefixtures("toy_recipe", "no_report", "in_tmp_path")
SHORT = ("train.steps=1", "train.eval_items=1")


def starts(run) -> list[dict]:
    return json.loads((run / "provenance.json").read_text())["starts"]


def test_a_run_records_its_start_and_every_continuation(
    in_tmp_path, train_toy, toy_task, monkeypatch
):
    monkeypatch.setattr(toy_task, "reward_scale", "how often 7 was written", raising=False)
    monkeypatch.setattr(provenance, "own_commit", lambda: "abc1234-dirty")
    assert train_toy("--name", "one", "train.eval_items=1", "train.steps=2") == 0
    assert train_toy("--name", "one", "train.eval_items=1", "train.steps=3", "--resume") == 0
    first, second = starts(in_tmp_path / "runs" / "one")
    words = "wavalign-fast train --recipe toy --name one train.eval_items=1 train.steps="
    assert (first["command"], second["command"]) == (f"{words}2", f"{words}3 --resume")
    assert (first["step"], second["step"]) == (0, 2)
    began = datetime.fromisoformat(first["started"])
    assert timedelta(0) <= datetime.now(timezone.utc) - began < timedelta(minutes=10)
    assert first["commit"] == "abc1234-dirty" and first["reward_scale"] == toy_task.reward_scale
    assert first["cores"] >= 1 and first["cpu"] and set(first["versions"]) >= {"Python", "torch"}


def test_what_is_not_known_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "own_commit", lambda: None)
    record_start(tmp_path, words=["train", "task.api_key=sk-1"], step=0)
    (start,) = starts(tmp_path)
    assert "commit" not in start and "reward_scale" not in start
    assert start["command"] == "wavalign-fast train 'task.api_key=***'"
    assert "sk-1" not in (tmp_path / "provenance.json").read_text()


def test_a_run_continued_for_ever_keeps_its_first_start_and_the_last_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "own_commit", lambda: None)
    monkeypatch.setattr(provenance, "MAX_STARTS", 4)
    for step in range(7):
        record_start(tmp_path, words=[], step=step)
    assert [start["step"] for start in starts(tmp_path)] == [0, 4, 5, 6]


def test_a_damaged_file_is_begun_again(tmp_path):
    for content in ("", "[1]", '{"starts": 3}'):
        (tmp_path / "provenance.json").write_text(content)
        record_start(tmp_path, words=[], step=0)
        assert len(starts(tmp_path)) == 1


def test_the_commit_is_that_of_the_package_and_not_of_a_repository_around_it(tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "wavalign_fast"
    package.mkdir(parents=True)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    monkeypatch.setattr(checkout, "__file__", str(package / "checkout.py"))
    monkeypatch.setattr(checkout, "checkout_commit", lambda path: str(path))
    assert checkout.own_commit() is None
    monkeypatch.setattr(checkout, "__file__", str(tmp_path / "wavalign_fast" / "checkout.py"))
    (tmp_path / "pyproject.toml").touch()
    assert checkout.own_commit() == str(tmp_path)


def test_every_arm_keeps_the_answers_of_the_base(in_tmp_path, train_toy):
    assert (
        train_toy("--name", "all", "--arms", "both,sft", "train.eval_items=2", "train.steps=1") == 0
    )
    for arm in ("both", "sft"):
        run = in_tmp_path / "runs" / "all" / arm
        samples = json.loads((run / "base_samples.json").read_text())
        assert [sample["wav"] for sample in samples] == ["wav/base-000.wav", "wav/base-001.wav"]
        assert samples[0] == {
            "prompt": "p",
            "reference": "r",
            "text": "t",
            "heard": "h",
            "reward": None,
            "wav": "wav/base-000.wav",
        }
        assert all((run / sample["wav"]).is_file() for sample in samples)
        evaluation = json.loads((run / "evaluation.json").read_text())
        assert evaluation["base"] != evaluation["final"]
