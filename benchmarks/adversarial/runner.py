"""Runs the cases of a provider in a subprocess, which may hang or crash without ending the run."""

import json
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator

from .case import Case

Outcome = dict[str, str | None]


class _Worker:
    """A process that answers one case at a time."""

    def __init__(self, provider: str) -> None:
        package = __name__.rpartition(".")[0]
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"{package}.worker", provider],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put("")  # the end

    def ask(self, case: Case, timeout: float) -> Outcome:
        try:
            self.process.stdin.write(case.name + "\n")
            self.process.stdin.flush()
            line = self.lines.get(timeout=timeout)
        except queue.Empty:
            self.stop()
            return {"status": "timeout", "detail": f"no answer within {timeout:.0f} s"}
        except BrokenPipeError:
            line = ""
        if line:
            return json.loads(line)
        code = self.process.wait()
        ended = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return {"status": "crash", "detail": f"the process ended with {ended}"}

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def run(provider: str, cases: Iterable[Case], *, timeout: float) -> Iterator[tuple[Case, Outcome]]:
    """Yields each case with its outcome; ``timeout`` is the limit in seconds for one case."""
    worker = None
    try:
        for case in cases:
            if worker is None or not worker.alive:
                worker = _Worker(provider)
            yield case, worker.ask(case, timeout)
    finally:
        if worker is not None:
            worker.stop()
