"""tools/gpu_check.sh: how stages affect one another. No stage really runs.

A shell script stands in for the Python interpreter, and does for each stage what a test wants.
"""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tools" / "gpu_check.sh"
STAGES = [
    "versions", "build", "tests", "trainer", "hybrid", "large", "kernels", "compiled", "profile",
    "memcheck", "racecheck",
]  # fmt: skip


class Checked:
    """A run of the script that has ended."""

    def __init__(self, done: subprocess.CompletedProcess, out: Path) -> None:
        self.status, self.output = done.returncode, done.stdout + done.stderr
        summary = out / "summary.txt"
        self.summary = summary.read_text() if summary.exists() else ""
        self.stages = dict(re.findall(r"^stage (\w+) (.*)", self.summary, re.MULTILINE))

    def code(self, stage: str) -> int:
        return int(re.search(r"rc=(\d+)", self.stages[stage])[1])


@pytest.fixture
def stand_in(tmp_path):
    """Writes the interpreter; ``cases`` are branches of a shell's ``case`` over its arguments."""

    def make(cases: str = "") -> dict[str, str]:
        path = tmp_path / "python"
        path.write_text(f'#!/usr/bin/env bash\ncase "$*" in\n{cases}\n*) ;;\nesac\n')
        path.chmod(0o755)
        return os.environ | {"PYTHON": str(path), "NOTES": str(tmp_path / "notes")}

    return make


@pytest.fixture
def check(tmp_path, stand_in):
    def run(*arguments: str, cases: str = "", **environment: str) -> Checked:
        out = tmp_path / "out"
        command = [str(SCRIPT), "--out", str(out), *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, env=stand_in(cases) | environment, cwd=tmp_path
        )
        return Checked(done, out)

    return run


def alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def all_gone(notes: Path) -> bool:
    """Whether all processes in the notes end within ten seconds."""
    pids = [int(pid) for pid in notes.read_text().split()]
    for _ in range(100):
        if not any(map(alive, pids)):
            return True
        time.sleep(0.1)
    return False


def test_all_stages_run_in_order(check):
    found = check()
    assert list(found.stages) == STAGES
    assert found.status == 0, found.output
    assert all(found.code(stage) == 0 for stage in STAGES)


def test_a_stage_that_fails_leaves_the_others_alone(check):
    found = check(cases="*bench*hybrid*) exit 3 ;;\n*machine*facts*) kill -SEGV $$ ;;")
    assert [found.code(stage) for stage in STAGES] == [139, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0]
    assert found.status == 1


def test_a_hanging_stage_is_killed_with_all_it_started(check, tmp_path):
    """Also a process that ignores TERM, and one that moved to its own session."""
    hangs = 'trap "" TERM; setsid sleep 300 & echo $! >>"$NOTES"; echo $$ >>"$NOTES"; sleep 300'
    found = check("hybrid", "large", "--limit", "20", cases=f"*hybrid*) {hangs} ;;")
    assert (found.code("hybrid"), found.code("large"), found.status) == (124, 0, 1)
    assert all_gone(tmp_path / "notes")


def test_processes_that_a_stage_leaves_are_killed(check, tmp_path):
    leaves = 'setsid sleep 300 >/dev/null 2>&1 & echo $! >>"$NOTES"'
    found = check("hybrid", cases=f"*hybrid*) {leaves} ;;")
    assert found.code("hybrid") == 0
    assert all_gone(tmp_path / "notes")


def test_without_time_a_stage_is_skipped_and_reported(check):
    found = check("hybrid", "--limit", "11")
    assert found.stages == {"hybrid": "skipped left=1"} or "left=0" in found.stages["hybrid"]
    assert found.status == 1


def test_the_budgets_fit_into_nine_minutes(check):
    text = SCRIPT.read_text()
    budgets = dict(re.findall(r"\[(\w+)\]=(\d+)", text))
    assert list(budgets) == STAGES
    reserve, limit = (
        int(re.search(pattern, text)[1]) for pattern in (r"RESERVE=(\d+)", r"LIMIT=(\d+)")
    )
    assert sum(map(int, budgets.values())) + reserve <= limit == 540
    # Later stages share what the earlier ones do not use.
    limits = [int(value.split("limit=")[1]) for value in check().stages.values()]
    assert all(limit >= int(budgets[stage]) for stage, limit in zip(STAGES, limits, strict=True))
    assert limits[-1] > 10 * int(budgets["racecheck"])


def test_bench_stands_for_its_parts(check):
    assert list(check("bench", "profile").stages) == [*STAGES[4:8], "profile"]


def test_all_gpu_tests_are_found_and_the_clock_is_tested_alone(check, tmp_path):
    found = check("tests", "trainer", cases='*"-m pytest"*) echo "$*" >>"$NOTES" ;;')
    together, alone, trainer = (tmp_path / "notes").read_text().splitlines()
    clock = "tests/benchmarks/test_gpu.py"
    marked = {
        str(path.relative_to(ROOT))
        for path in ROOT.glob("tests/**/test_*.py")
        if "mark." + "gpu" in path.read_text()
    }
    of_trainer = {path for path in marked if path.startswith("tests/gpu/trainer/")}
    in_one_run = {word for word in together.split() if word.endswith(".py")}
    assert of_trainer and in_one_run == marked - of_trainer - {clock}
    assert "-n 6" in together and "-n " not in alone and alone.endswith(clock)
    assert "-n " not in trainer and trainer.endswith("tests/gpu/trainer")
    for words in (together, alone, trainer):
        assert "-m gpu" in words and "--continue-on-collection-errors" in words
    assert found.status == 0


def test_only_results_of_an_earlier_run_are_removed(check, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name in ("machine.json", "hybrid_loss.json", "mine.txt", "other.json"):
        (out / name).write_text("{}")
    check("hybrid")
    left = sorted(path.name for path in out.iterdir())
    assert left == ["log.txt", "mine.txt", "other.json", "summary.txt"]


def test_the_commit_is_the_given_one_or_that_of_git(check, tmp_path):
    no_git = {"GIT_DIR": "/nonexistent"}
    assert "commit unknown" in check("hybrid", **no_git).summary
    assert "commit abc1234," in check("hybrid", "--commit", "abc1234", **no_git).summary
    known = "*benchmarks.commit*) echo fed4321-dirty ;;"
    assert "commit fed4321-dirty," in check("hybrid", cases=known).summary
    note_run = 'echo "$GPU_CHECK_RUN" >"$NOTES"'
    found = check("hybrid", "--commit", "v1.0", cases=f"*hybrid*) {note_run} ;;")
    assert found.code("hybrid") == 0
    run = json.loads((tmp_path / "notes").read_text())
    assert run["commit"] == "v1.0" and run["rehearsed"] is False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hybird"], "hybird: no such stage or option"),
        (["--limit", "soon"], "--limit: got soon, want seconds"),
        (["--limit"], "--limit: wants a value"),
        (["--commit", 'x", "y'], "want a name of a commit"),
        (["--out", "/proc/nothing"], "--out: cannot write to /proc/nothing"),
    ],
)
def test_wrong_arguments_are_refused(check, arguments, message):
    found = check(*arguments)
    assert found.status == 2 and message in found.output and not found.stages


def test_a_killed_run_kills_its_stage(stand_in, tmp_path):
    hangs = 'setsid sleep 300 & echo $! >>"$NOTES"; echo $$ >>"$NOTES"; sleep 300'
    command = [str(SCRIPT), "--out", str(tmp_path / "out"), "tests"]
    # If the stage's shell survived, it would start its second command.
    again = 'echo again >>"$NOTES.again"; '
    cases = f"*pytest*test_gpu.py*) {again} ;;\n*pytest*) {hangs} ;;"
    process = subprocess.Popen(
        command, env=stand_in(cases), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    notes = tmp_path / "notes"
    while not (notes.exists() and len(notes.read_text().split()) == 2):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    assert all_gone(notes) and not notes.with_suffix(".again").exists()


def test_saving_is_left_to_python(stand_in, tmp_path):
    echo = 'echo "$@"'
    command = [str(SCRIPT), "save", "results", "--commit", "abc"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=stand_in(f"*save*) {echo} ;;")
    )
    assert done.stdout == f"-m tools.gpu_check.results save {tmp_path}/results --commit abc\n"
