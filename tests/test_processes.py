"""Real processes: a signal to the process group, and a reader of the log that goes away."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("pocketsphinx")

LIMIT_S = 240
"""Far more than a busy machine needs; only a hang takes this long."""
TINY = [
    "rollout.prompts=2", "rollout.group_size=2", "anchor.rows=2", "train.log_every=1",
    "train.steps=2", "train.checkpoint_every=0",
]  # fmt: skip


def start(tmp_path, *options, **env):
    """Trains spoken-sums in a new process group."""
    command = [sys.executable, "-W", "ignore", "-m", "wavalign_fast.cli", "train"]
    return subprocess.Popen(
        [*command, "--recipe", "spoken-sums", "--name", "it", *TINY, *options],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path), **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def children(pid: int) -> list[int]:
    try:
        return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def test_training_goes_on_when_nobody_reads_its_log(tmp_path):
    """As in ``LC_ALL=C wavalign-fast train ... | head -1``."""
    options = ("train.eval_items=0", "train.steps=4")
    process = start(tmp_path, *options, PYTHONIOENCODING="ascii")
    try:
        line = next(line for line in process.stdout if "step 1/4" in line)
        process.stdout.close()
        assert process.wait(LIMIT_S) == 0
        assert process.stderr.read() == ""
    finally:
        process.kill()
    assert "lambda" in line and line.isascii()
    for name in ("checkpoint/model.safetensors", "evaluation.json", "report.html"):
        assert (tmp_path / "runs/it" / name).is_file()
    lines = (tmp_path / "runs/it/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 4


def test_a_signal_to_the_whole_group_while_the_base_is_judged(tmp_path):
    """As Ctrl-C in a terminal, which the judge's workers must not answer with a traceback."""
    process = start(tmp_path, "train.eval_items=32")
    try:
        deadline = time.monotonic() + LIMIT_S
        while len(workers := children(process.pid)) < 2 and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert len(workers) == 2, process.communicate()
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=LIMIT_S)
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGINT
    assert err == "wavalign-fast: interrupted by SIGINT\n"
    assert "Traceback" not in out
    # A worker that its parent did not know yet ends by itself once the parent is gone.
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not [path for path in tmp_path.rglob("*") if ".tmp" in path.name]
