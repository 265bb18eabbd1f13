"""Plants a fault in a copy of the sources and runs the tests that must find it."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tools.build_once import BuildFailed

from .places import Place, places

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
"""The most characters of a reason."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A change to one source file that makes a kernel wrong."""

    name: str
    what: str
    """What goes wrong, for the table."""
    at: str
    """Where: a file, from the top of the checkout, and often ``::`` and a function, class or struct
    in it, to which the place is narrowed."""
    find: str
    """The pattern of ``places`` that matches there once."""
    put: str
    """The replacement; a wildcard stands for the tokens that it has matched."""
    rung: str
    """The rung of the ladder that finds it."""
    tests: tuple[str, ...]
    """Node ids of tests that pass without the fault; one of them must fail with it."""

    @property
    def path(self) -> str:
        """The file alone."""
        return self.at.partition("::")[0]

    def place(self, text: str) -> Place:
        """The fault's place in the text of its file.

        Raises:
            ValueError: the pattern does not match, or more than once.
        """
        path, _, inside = self.at.partition("::")
        found = places(text, Path(path).suffix, inside, self.find)
        if len(found) != 1:
            raise ValueError(
                f"{self.name}: got {len(found)} places in {self.at} that look like "
                f"{self.find!r}, want one"
            )
        return found[0]

    def planted(self, text: str) -> str:
        """The text of the fault's file with the fault in it."""
        place = self.place(text)
        return text[: place.start] + place.filled(self.put) + text[place.end :]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of a fault's tests."""

    test: str | None
    """The node id of the test that failed; ``None``: no test did."""
    reason: str
    """That test's message, or what happened instead of a failed test."""

    @property
    def found(self) -> bool:
        return self.test is not None


def plant(fault: Fault, target: Path) -> None:
    """Makes ``target`` a checkout of links, in which the fault's file is another one."""
    _link(ROOT, target, TREE, Path(fault.path).parts)
    source = (ROOT / fault.path).read_text(encoding="utf-8")
    (target / fault.path).write_text(fault.planted(source), encoding="utf-8")


def _link(source: Path, target: Path, names: Iterable[str], path: tuple[str, ...]) -> None:
    """Links to ``names`` of a folder, with new folders on the way to ``path`` and no link there."""
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
    """Reads the outcome of a fault from pytest's exit code and output.

    Only a test that ran and failed has found it. Any typing error would cause an error in a
    fixture, in the collection or in a compiler.
    """
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["no output"]
    failed = [line for line in lines if line.startswith("FAILED ")]
    errors = [line for line in lines if line.startswith("ERROR ") or BuildFailed.__name__ in line]
    if status == 1 and failed and not errors:
        test, _, reason = failed[0].removeprefix("FAILED ").partition(" - ")
        return Outcome(test=test, reason=without_specifics(reason))
    return Outcome(
        test=None, reason=f"exit code {status}: {without_specifics([*errors, lines[-1]][0])}"
    )


def without_specifics(reason: str) -> str:
    """Drops what differs between machines or runs, and cuts the rest to its length."""
    reason = re.sub(r"(?<![\w.])/(?:[^\s/'\"]+/)+", "", reason)  # the folders of a file
    reason = re.sub(r"==\d+==|\s*\(pid=\d+\)", "", reason)
    reason = re.sub(r"0x[0-9a-f]{6,}", "0x…", reason)
    reason = re.sub(r"\b(?:\w+\.)+(?=\w+(?:Error|Fault): )", "", reason)  # an exception's module
    reason = re.sub(r"\bin \d+\.\d+ ?s\b", "", reason)
    reason = " ".join(reason.split())
    return reason if len(reason) <= LONGEST else reason[: LONGEST - 1].rstrip() + "…"
