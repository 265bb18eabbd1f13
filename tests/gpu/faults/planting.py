"""Plants one fault in a copy of the sources and runs the tests that must find it."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tools.build_once import BuildFailed

ROOT = Path(__file__).parents[3]
TREE = (
    "csrc",
    "wavalign_fast",
    "benchmarks",
    "tests",
    "tools",
    "pyproject.toml",
    "setup.py",
    "README.md",
    "LICENSE",
)
LONGEST = 120
"""Characters of a reason."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A change of one source file that makes a kernel wrong."""

    name: str
    what: str
    """What goes wrong, for the table."""
    path: str
    """The file, from the top of the checkout."""
    before: str
    """Stands in the file once."""
    after: str
    rung: str
    """The rung of the ladder that finds it."""
    tests: tuple[str, ...]
    """Node ids of tests that pass without the fault; one of them must fail with it."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the tests said."""

    test: str | None
    """The node id of the test that failed; ``None``: no test did."""
    reason: str
    """That test's own words, or what came instead of a failed test."""

    @property
    def found(self) -> bool:
        return self.test is not None


def faulty_source(fault: Fault) -> str:
    """The file's text with the fault in it.

    Raises:
        ValueError: the place is not in the file, or more than once.
    """
    text = (ROOT / fault.path).read_text(encoding="utf-8")
    if text.count(fault.before) != 1:
        raise ValueError(
            f"{fault.name}: {fault.path} holds {fault.before!r} {text.count(fault.before)} times, "
            "want once"
        )
    return text.replace(fault.before, fault.after)


def plant(fault: Fault, target: Path) -> None:
    """A checkout of links in ``target`` in which one file is another one."""
    _link(ROOT, target, TREE, Path(fault.path).parts)
    (target / fault.path).write_text(faulty_source(fault), encoding="utf-8")


def _link(source: Path, target: Path, names: Iterable[str], path: tuple[str, ...]) -> None:
    """Links to ``names`` of a folder; new folders on the way to ``path``, and nothing there."""
    for name in names:
        if name != path[0]:
            (target / name).symlink_to(source / name)
        elif len(path) > 1:
            (target / name).mkdir()
            inside = [entry.name for entry in (source / name).iterdir()]
            _link(source / name, target / name, inside, path[1:])


def outcome(fault: Fault, *, seconds: int = 300) -> Outcome:
    """Runs the fault's tests on the faulty sources."""
    with tempfile.TemporaryDirectory() as folder:
        plant(fault, Path(folder))
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:xdist"]
        command += ["-p", "no:cacheprovider", "--tb=line", *fault.tests]
        settings = {"PYTHONDONTWRITEBYTECODE": "1", "PYTEST_ADDOPTS": "", "COLUMNS": "300"}
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=seconds,
                env={**os.environ, **settings},
            )
        except subprocess.TimeoutExpired:
            return Outcome(test=None, reason=f"no answer in {seconds} s")
    return read_outcome(done.returncode, done.stdout + done.stderr)


def read_outcome(status: int, output: str) -> Outcome:
    """What pytest's exit code and output say of a fault.

    Only a test that ran and failed has found it. An error, of a fixture, of the collection or of
    a compiler, is one that any misprint would give.
    """
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["no output"]
    failed = [line for line in lines if line.startswith("FAILED ")]
    errors = [line for line in lines if line.startswith("ERROR ") or BuildFailed.__name__ in line]
    if status == 1 and failed and not errors:
        test, _, reason = failed[0].removeprefix("FAILED ").partition(" - ")
        return Outcome(test=test, reason=told_anywhere(reason))
    return Outcome(
        test=None, reason=f"exit code {status}: {told_anywhere([*errors, lines[-1]][0])}"
    )


def told_anywhere(reason: str) -> str:
    """Without what another machine or another run would say otherwise, and not too long."""
    reason = re.sub(r"(?<![\w.])/(?:[^\s/'\"]+/)+", "", reason)  # the folders of a file
    reason = re.sub(r"==\d+==|\s*\(pid=\d+\)", "", reason)
    reason = re.sub(r"0x[0-9a-f]{6,}", "0x…", reason)
    reason = re.sub(r"\b(?:\w+\.)+(?=\w+(?:Error|Fault): )", "", reason)  # an exception's module
    reason = re.sub(r"\bin \d+\.\d+ ?s\b", "", reason)
    reason = " ".join(reason.split())
    return reason if len(reason) <= LONGEST else reason[: LONGEST - 1].rstrip() + "…"
