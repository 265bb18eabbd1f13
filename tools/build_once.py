"""Runs a compiler once for each file, however many processes ask for the file."""

import fcntl
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class BuildFailed(RuntimeError):
    """A compiler failed: its command line and its messages."""


def build_once(target: Path, command: list[str]) -> str:
    """Builds ``target`` unless a process has built it before, and returns the build's messages.

    Args:
        target: the file to build; a lock file and the messages are kept beside it.
        command: the compiler's command line; ``-o`` and a path are appended to it.

    Raises:
        BuildFailed: the command failed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    messages = target.with_name(target.name + ".messages")
    with _locked(target.with_name(target.name + ".lock")):
        if not (target.exists() and messages.exists()):
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
