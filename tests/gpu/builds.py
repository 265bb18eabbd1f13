"""Files that a test session builds once, whichever of its workers needs them first."""

import fcntl
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class BuildFailed(RuntimeError):
    """The compiler's command and what it said."""


def session_folder(factory: pytest.TempPathFactory, name: str) -> Path:
    """A folder that all workers of this session share; it is gone with the session."""
    base = factory.getbasetemp()
    # Workers have folders of their own inside the session's.
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name


def made(target: Path, command: list[str]) -> str:
    """Runs ``command`` for ``target`` unless another process has, and returns its messages.

    The command writes to the path that stands for ``-o``, which is appended.

    Raises:
        BuildFailed: the command failed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    messages = target.with_name(target.name + ".messages")
    with _locked(target.with_name(target.name + ".lock")):
        if not target.exists():
            partial = target.with_name(target.name + ".partial")
            done = subprocess.run(
                [*command, "-o", str(partial)], capture_output=True, text=True, check=False
            )
            messages.write_text(done.stdout + done.stderr, encoding="utf-8")
            if done.returncode != 0:
                raise BuildFailed(f"{' '.join(command)}\n{messages.read_text(encoding='utf-8')}")
            os.replace(partial, target)
        return messages.read_text(encoding="utf-8")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
