"""The process in which Triton interprets kernels: it runs test functions on request.

Triton decides at import, for the whole process, whether it compiles or interprets. The tests of
this folder are collected in pytest's process and run in this one, so no other test is affected.
"""

import importlib
import os
import pickle
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

NAME = "tests.gpu.conformance.interpreter.child"


class Child:
    """The parent's end."""

    def __init__(self, root: Path) -> None:
        one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", NAME],
            cwd=root,
            env={**os.environ, **one_thread, "TRITON_INTERPRET": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def call(self, module: str, function: str, arguments: dict[str, Any]) -> str | None:
        """Runs a test function and returns what failed, in words, or ``None``."""
        assert self.process.stdin is not None and self.process.stdout is not None
        pickle.dump((module, function, arguments), self.process.stdin)
        self.process.stdin.flush()
        try:
            return pickle.load(self.process.stdout)
        except EOFError:
            return f"the interpreting process died with exit code {self.process.wait()}"

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=30)


def run(module: str, function: str, arguments: dict[str, Any]) -> str | None:
    try:
        getattr(importlib.import_module(module), function)(**arguments)
    except BaseException as error:
        return f"{_headline(error)}\n\n{traceback.format_exc()}"
    return None


def _headline(error: BaseException) -> str:
    """The first line that pytest shows: the first exception, and its source line if it is empty."""
    while error.__cause__ is not None:  # the interpreter wraps an error at every call
        error = error.__cause__
    said = [line for line in str(error).splitlines() if line.strip()]
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {said[0] if said else place.line}"


def main() -> None:
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    # What kernels print must not mix with the answers.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    from tests.gpu.conformance.interpreter import checker, repairs

    repairs.install()
    checker.install()
    while True:
        try:
            request = pickle.load(requests)
        except EOFError:
            return
        pickle.dump(run(*request), answers)
        answers.flush()


if __name__ == "__main__":
    main()
