"""All stages of tools/gpu_check.sh, from its first line to its last, with a pretended GPU."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.report.gpu_check import REHEARSAL, RehearsalError, read_gpu
from tools.gpu_check import bench, files

SCRIPT = Path(__file__).parents[2] / "tools" / "gpu_check.sh"
FILES = {
    "summary.txt", "log.txt", "machine.json", "tests.json", "hybrid_loss.json",
    "linear_logprob.json", "profile.json", "sanitizer.json",
}  # fmt: skip


@pytest.mark.slow
def test_all_stages_run_to_their_end_and_give_no_measurement(tmp_path):
    pytest.importorskip("triton")
    # Far more time than it takes, so that the speed of this machine does not matter.
    command = [str(SCRIPT), "--rehearse", "--limit", "3000", "--commit", "abc1234"]
    environment = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], capture_output=True, text=True, env=environment
    )
    log = (tmp_path / "log.txt").read_text()
    stages = re.findall(r"^stage (\w+) rc=(\d+)", done.stdout, re.MULTILINE)
    assert len(dict(stages)) == 11 and {code for _, code in stages} == {"0"}, log[-6000:]
    assert done.returncode == 0
    assert {path.name for path in tmp_path.iterdir()} == FILES

    records = {path.stem: files.read(path) for path in tmp_path.glob("*.json")}
    for record in records.values():
        assert (record["run"]["rehearsed"], record["run"]["commit"]) == (True, "abc1234")
    assert records["machine"]["backends"]["cuda"] == "it is only pretended"
    assert records["machine"]["nvidia_smi"]["driver_version"] == "0.0"
    for name in ("together", "trainer"):
        ran = records["tests"]["runs"][name]
        assert ran["finished"] and ran["passed"] > 0 and not ran["failed"] + ran["errors"]
    assert {name: tool["outcome"] for name, tool in records["sanitizer"]["tools"].items()} == {
        "memcheck": "clean",
        "racecheck": "clean",
    }
    assert records["profile"]["backends"]["triton"]["launches"] > 0
    shapes = {"hybrid_loss": set(), "linear_logprob": set()}
    for *_, last in bench.PARTS.values():
        shapes[last.benchmark].add(last.shape.name)
    for name, wanted in shapes.items():
        assert {one["shape"]["name"] for one in records[name]["cases"]} == wanted
        for one in records[name]["cases"]:
            assert one["machine"]["rehearsed"] is True
            for side in ("ours-triton", "torch"):
                assert (
                    one["sides"][side]["wall_s"] > 0 and one["sides"][side]["graph"]["wall_s"] > 0
                )

    assert REHEARSAL in done.stdout and "| **wavalign_fast, Triton** |" in done.stdout
    with pytest.raises(RehearsalError):
        read_gpu(tmp_path)
    save = subprocess.run(
        [str(SCRIPT), "save", str(tmp_path)], capture_output=True, text=True, env=environment
    )
    assert save.returncode == 2 and "got a rehearsal" in save.stderr
    assert json.loads((tmp_path / "machine.json").read_text())["machine"]["rehearsed"] is True
