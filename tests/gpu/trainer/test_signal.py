"""SIGTERM to torchrun, as a scheduler sends it: a whole checkpoint within the time it grants."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.gpu.trainer.places import WORLDS, need_gpus

ROOT = Path(__file__).parents[3]
GRACE_S = 30
"""Seconds between SIGTERM and SIGKILL in torchrun, and by default in Slurm and Kubernetes."""


@pytest.mark.parametrize(
    ("device", "world"), [pytest.param("cpu", 1, marks=pytest.mark.slow), *WORLDS[1:]]
)
def test_sigterm_to_torchrun_leaves_a_whole_checkpoint_in_its_grace_time(device, world, tmp_path):
    if device == "cuda":
        need_gpus(world)
    run = tmp_path / "runs" / "run"
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
        str(world), "-m", "tests.gpu.trainer.torchrun_toy", "train.steps=100000",
        "train.eval_items=0", "telemetry.tensorboard=false", "model.compute_dtype=bfloat16",
    ]  # fmt: skip
    with (tmp_path / "log").open("w") as log:
        torchrun = subprocess.Popen(
            command,
            cwd=tmp_path,
            stdout=log,
            stderr=log,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )
    try:
        until = time.monotonic() + 240
        metrics = run / "metrics.jsonl"
        while not metrics.is_file() or not metrics.read_text().count("\n"):
            assert torchrun.poll() is None and time.monotonic() < until, said(tmp_path)
            time.sleep(0.1)
        torchrun.send_signal(signal.SIGTERM)
        start = time.monotonic()
        torchrun.wait(GRACE_S + 30)
        assert time.monotonic() - start < GRACE_S, said(tmp_path)
    finally:
        torchrun.kill()
    contents = json.loads((run / "checkpoint" / "contents.json").read_text())
    assert contents["step"] == len(metrics.read_text().splitlines())
    assert "stopped by SIGTERM after step" in said(tmp_path)


def said(directory: Path) -> str:
    return (directory / "log").read_text()[-4000:]
