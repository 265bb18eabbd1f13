"""Whole runs of real models in small: files in the families' formats, WAVs, codec, judge, ranks."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.rewards.loopback_judge import LoopbackJudge, scores
from wavalign_fast.cli import main
from wavalign_fast.models.families.checkpoint import load_family, read_aside
from wavalign_fast.models.families.dialogue_file import read_dialogue_file
from wavalign_fast.models.families.tiny import make_tiny_checkpoint
from wavalign_fast.train import export, run_directory

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"
FAMILIES = DATA / "families"
DIALOGUES = DATA / "dialogues" / "rl_sft.jsonl"
SMALL = [
    "model.compute_dtype=float32", "rollout.prompts=2", "rollout.group_size=2",
    "rollout.max_new_tokens=16", "anchor.rows=2", "train.eval_items=2", "train.eval_every=0",
    "train.checkpoint_every=1", "optimizer.lr=1e-3", "optimizer.warmup_steps=0",
]  # fmt: skip
CODEC = {name: FAMILIES / f"glm4_voice_{name}" for name in ("tokenizer", "decoder")}
"""The native codec, shrunk, with 64 codes."""
TIME_LIMIT_S = 300


@pytest.fixture(scope="module")
def judge():
    """Every other reply is good."""
    with LoopbackJudge(*[scores(value) for value in (5, 2, 4, 1) * 500]) as server:
        yield server


def settings(judge, *more: str) -> list[str]:
    return [
        f"task.judge.url={judge.url}",
        "task.judge.model=ear-1",
        "task.judge.max_missing=1",
        *SMALL,
        *more,
    ]


def init(family: str, *more: str, model: Path | None = None) -> None:
    files = ["--model", str(model or FAMILIES / family), "--data", str(DIALOGUES)]
    assert main(["init", family, *files, "--eval-data", str(DIALOGUES), "--set", *more]) == 0


@pytest.mark.parametrize(
    "family",
    ["vita_audio", "vita_audio_plus", "glm4_voice", "step_audio_2", "covo_audio", "kimi_audio"],
)
def test_a_run_from_files_to_an_export_in_the_familys_format(
    family, judge, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    source = FAMILIES / family
    if family == "kimi_audio":  # its golden case has no Whisper beside it
        source = tmp_path / "checkpoint"
        make_tiny_checkpoint(family, source)
    before = load_family(source)
    codes = before.files.layout.codebook_size
    codec = f"task.codec={{kind: toy, codebook_size: {codes}}}"
    own = {
        "step_audio_2": ["task.ratio=[4,8]"],  # not its own
        "kimi_audio": ["rollout.max_new_tokens=40"],  # two ids a position, six before the speech
        "vita_audio": ["anchor.mtp_loss_weight=model"],
    }.get(family, [])
    init(family, codec, *settings(judge, "train.steps=2", *own), model=source)

    assert main(["train", "run.yaml"]) == 0
    run = tmp_path / "runs" / family
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2]
    assert all(record["judge/asked"] == 4 for record in records)
    assert (run / "report.html").is_file() and list((run / "tensorboard").iterdir())

    assert main(["export", str(run), "out", "--format", "family"]) == 0
    after = load_family(tmp_path / "out")
    ratio = [4, 8] if family == "step_audio_2" else None
    assert read_dialogue_file(tmp_path / "out").get("ratio") == ratio
    assert {file.name for file in (tmp_path / "out").iterdir()} >= {
        file.name for file in source.iterdir() if "golden" not in file.name
    } - {"model.safetensors"}
    moved = [
        name
        for (name, old), new in zip(
            before.model.named_parameters(), after.model.parameters(), strict=True
        )
        if not torch.equal(old, new)
    ]
    assert moved
    old, new = (read_aside(place, before.table) for place in (source, tmp_path / "out"))
    trained = {name for name in old if not torch.equal(old[name], new[name])}
    # Layers of multi-token prediction are trained with the model, encoders of sound are not.
    assert trained == ({*old} if family == "vita_audio" else set())
    assert all(("loss/mtp" in record) == (family == "vita_audio") for record in records)
    if family == "kimi_audio":  # its checkpoint is of a class of this package
        (tmp_path / "p.jsonl").write_text('{"id": "1", "task": "spoken", "prompt": "hello"}')
        words = ["p.jsonl", "--model", str(run), "--max-new-tokens", "20", "--output", "asked"]
        assert main(["evaluate", *words]) == 0
        response = json.loads((tmp_path / "asked" / "responses.jsonl").read_text())
        assert 12 < len(response["ids"]) <= 20
        capsys.readouterr()
        assert main(["say", "hello", "--run", str(run), "--out", "said.wav"]) == 0
        assert "speech: " in capsys.readouterr().out
        assert main(["train", "run.yaml", "parallel.head=sharded", "--name", "other"]) == 2
        assert "gathered for two streams" in capsys.readouterr().err
        assert main(["plan", "run.yaml"]) == 2
        assert "kimi_audio, which has two streams" in capsys.readouterr().err


def test_an_export_says_that_mtp_layers_are_the_old_ones(tmp_path, monkeypatch, capsys):
    written = tmp_path / "out"
    monkeypatch.setattr(export, "export_as_family", lambda *_: written)
    monkeypatch.setattr(export, "run_of", lambda run: run)
    config = SimpleNamespace(model=SimpleNamespace(path=str(FAMILIES / "vita_audio")), task={})
    monkeypatch.setattr(run_directory, "read_run_config", lambda run: config)
    for trained in (False, True):
        monkeypatch.setattr(export, "trains_mtp", lambda run, trained=trained: trained)
        assert main(["export", str(tmp_path), str(written), "--format", "family"]) == 0
        said = f"MTP layers: those of {FAMILIES / 'vita_audio'}, which were not trained"
        assert (said in capsys.readouterr().out) is not trained


@pytest.mark.slow
def test_two_ranks_with_the_native_codec_survive_a_kill(judge, tmp_path, monkeypatch):
    """The paper's model in small: raw files to an export, killed and resumed on the way."""
    monkeypatch.chdir(tmp_path)
    make_tiny_checkpoint("vita_audio_plus", tmp_path / "checkpoint", codebook_size=64)
    codec = [f"task.codec.{name}={place}" for name, place in CODEC.items()]
    few = settings(judge, "train.steps=4", "loss.text_kl=0.01", *codec)
    init("vita_audio_plus", *few, model=tmp_path / "checkpoint")
    ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*ranks, "-m", "wavalign_fast", "train", "run.yaml"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = tmp_path / "runs" / "vita_audio_plus"

    with subprocess.Popen(command, env=environment, start_new_session=True) as started:
        try:
            wait_until(lambda: len(steps_of(run)) >= 2, started)
        finally:
            os.killpg(started.pid, signal.SIGKILL)
    assert len(steps_of(run)) < 4, "the run had ended before it was killed"
    subprocess.run([*command, "--resume"], env=environment, check=True, timeout=TIME_LIMIT_S)

    records = steps_of(run)
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    assert all(record["judge/asked"] == 4 for record in records)
    assert any(record["gate/lambda"] > 0 for record in records)
    assert (run / "report.html").is_file() and list((run / "tensorboard").iterdir())
    assert list((tmp_path / "audio_cache" / "vectors").rglob("*")), "prompts had no vectors"
    export = ["export", str(run), str(tmp_path / "out"), "--format", "family"]
    assert main(export) == 0
    load_family(tmp_path / "out")
    for name in ("am.mvn", "config.json", "config.yaml"):
        assert (tmp_path / "out" / name).read_bytes() == (
            tmp_path / "checkpoint" / name
        ).read_bytes()


def steps_of(run: Path) -> list[dict]:
    """The metrics of the steps so far."""
    file = run / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return [json.loads(line) for line in lines]


def wait_until(happened, process: subprocess.Popen) -> None:
    end = time.monotonic() + TIME_LIMIT_S
    while not happened():
        assert process.poll() is None, f"the run ended with status {process.returncode}"
        assert time.monotonic() < end, f"nothing happened in {TIME_LIMIT_S} s"
        time.sleep(0.05)
