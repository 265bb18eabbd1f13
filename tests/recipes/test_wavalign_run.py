"""Whole runs of real models in small: files in the families' formats, WAVs, codec, judge, ranks."""

import json
from pathlib import Path

import pytest
import torch

from tests.rewards.loopback_judge import LoopbackJudge, scores
from wavalign_fast.cli import main
from wavalign_fast.models.families.checkpoint import load_family

DATA = Path(__file__).parents[1] / "data"
FAMILIES = DATA / "families"
DIALOGUES = DATA / "dialogues" / "rl_sft.jsonl"
SMALL = [
    "model.compute_dtype=float32", "rollout.prompts=2", "rollout.group_size=2",
    "rollout.max_new_tokens=16", "anchor.rows=2", "train.eval_items=2", "train.eval_every=0",
    "train.checkpoint_every=1", "optimizer.lr=1e-3", "optimizer.warmup_steps=0",
]  # fmt: skip
TIME_LIMIT_S = 500


@pytest.fixture(scope="module")
def judge():
    """Every other reply is good."""
    with LoopbackJudge(*[scores(value) for value in (5, 2, 4, 1) * 500]) as server:
        yield server


def settings(judge, family: str, *more: str) -> list[str]:
    return [f"task.judge.url={judge.url}", "task.judge.model=ear-1", *SMALL, *more]


def init(family: str, *more: str) -> None:
    files = ["--model", str(FAMILIES / family), "--data", str(DIALOGUES)]
    assert main(["init", family, *files, "--eval-data", str(DIALOGUES), "--set", *more]) == 0


@pytest.mark.parametrize(
    "family", ["vita_audio", "vita_audio_plus", "glm4_voice", "step_audio_2", "covo_audio"]
)
def test_a_run_from_files_to_an_export_in_the_familys_format(family, judge, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = load_family(FAMILIES / family)
    codes = before.files.layout.codebook_size
    codec = f"task.codec={{kind: toy, codebook_size: {codes}}}"
    init(family, codec, *settings(judge, family, "train.steps=2"))

    assert main(["train", "run.yaml"]) == 0
    run = tmp_path / "runs" / family
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2]
    assert all(record["judge/asked"] == 4 for record in records)
    assert (run / "report.html").is_file() and list((run / "tensorboard").iterdir())

    assert main(["export", str(run), "out", "--format", "family"]) == 0
    after = load_family(tmp_path / "out")
    assert {file.name for file in (tmp_path / "out").iterdir()} >= {
        file.name for file in (FAMILIES / family).iterdir() if "golden" not in file.name
    } - {"model.safetensors"}
    moved = [
        name
        for (name, old), new in zip(
            before.model.named_parameters(), after.model.parameters(), strict=True
        )
        if not torch.equal(old, new)
    ]
    assert moved
