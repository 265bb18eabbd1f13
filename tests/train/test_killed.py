"""A training command that is killed anywhere can be resumed, and nothing shows that it was."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

RANK_PLACES = ("part file",)


def kills_of(directory: Path, *options: str) -> dict[str, dict]:
    """What ``killed_runs.py`` prints, by the place of the kill."""
    script = Path(__file__).with_name("killed_runs.py")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", script, directory, *options],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    kills = [json.loads(line) for line in done.stdout.splitlines()]
    return {kill.pop("what"): kill for kill in kills}


GOOD = {"killed": -9, "resumed": 0, "same": True}


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_undisturbed_result(tmp_path):
    kills = kills_of(tmp_path)
    assert {"step 2", "save 1", "state file 2", "rename 10"} <= set(kills)
    assert {place: kill for place, kill in kills.items() if kill != GOOD} == {}


@pytest.mark.slow
def test_so_does_a_run_of_two_ranks_when_one_is_killed_while_they_save(tmp_path):
    kills = kills_of(tmp_path, "--world", "2", "--only", *RANK_PLACES)
    assert kills == dict.fromkeys(RANK_PLACES, GOOD)
