"""A training command that is killed anywhere can be resumed, and nothing shows that it was."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_undisturbed_result(tmp_path):
    script = Path(__file__).with_name("killed_runs.py")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", script, tmp_path],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    kills = [json.loads(line) for line in done.stdout.splitlines()]
    places = [kill.pop("what") for kill in kills]
    assert {"step 2", "save 1", "state file 2", "rename 10"} <= set(places)
    good = {"killed": -9, "resumed": 0, "same": True}
    assert {place: kill for place, kill in zip(places, kills, strict=True) if kill != good} == {}
