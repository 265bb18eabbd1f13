"""Plants one fault in a copy of the sources and runs the tests that must find it."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]
TREE = (
    "csrc",
    "wavalign_fast",
    "benchmarks",
    "tests",
    "pyproject.toml",
    "setup.py",
    "README.md",
    "LICENSE",
)


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

    found: bool
    reason: str
    """The first failure in the tests' own words, or what went wrong instead."""


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
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=seconds,
                env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTEST_ADDOPTS": ""},
            )
        except subprocess.TimeoutExpired:
            return Outcome(found=False, reason=f"no answer in {seconds} s")
    if done.returncode == 1:
        return Outcome(found=True, reason=_first_failure(done.stdout))
    # Anything but failed tests: all passed, or nothing could be collected.
    words = (done.stdout + done.stderr).strip().splitlines() or ["no output"]
    return Outcome(found=False, reason=f"exit code {done.returncode}: {words[-1]}")


def _first_failure(output: str) -> str:
    lines = [line.strip() for line in output.splitlines()]
    named = [line for line in lines if line.startswith(("FAILED ", "ERROR "))]
    return named[0] if named else lines[-1]
