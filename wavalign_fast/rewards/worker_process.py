"""Programs in processes of their own, which answer a line of JSON with a line of JSON.

Every wait for one has a deadline, and it can be killed whatever it does. ``multiprocessing`` is not
used: with it a parent waits forever for a child that dies during its start, each child runs the
user's script again, and it gets its parent's signals and terminal.
"""

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any

from typing_extensions import Self

READ_SIZE = 1 << 16


class WorkerDiedError(RuntimeError):
    """The process ended instead of replying; the message says how."""


class NotYet:
    """Stands for a reply of which only a part has arrived."""


NOT_YET = NotYet()


def command(module: str, call: str, *arguments: str) -> list[str]:
    """Returns the command of a process that runs ``call`` after importing it from ``module``.

    It has the import path of this process, wherever that came from. ``call`` is Python and finds
    the ``arguments`` in ``sys.argv[1:]``.
    """
    path = [entry for entry in sys.path if isinstance(entry, str)]
    name = call.partition("(")[0]
    code = f"import sys; sys.path = {path!r}; from {module} import {name}; {call}"
    return [sys.executable, "-c", code, *arguments]


class WorkerProcess:
    """One process, killed at the end of the context, together with the processes it started.

    It has a session of its own, so that no signal from a terminal or to its parent's process group
    reaches it. It ends when its parent is gone.

    Args:
        show_output: whether its output goes to this process's standard error. Else only the last
            line is kept, for ``ending``.

    Raises:
        OSError: the process cannot be started.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        show_output: bool = False,
    ) -> None:
        self._errors = None if show_output else tempfile.TemporaryFile()  # noqa: SIM115
        self._unread = bytearray()
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env={**os.environ, **(env or {})},
                start_new_session=True,
                bufsize=0,
            )
        except OSError:
            self._close_errors()
            raise
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)
        os.set_blocking(self.fileno(), False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    def kill(self) -> None:
        """Ends the process and those it started, at once."""
        if self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # it leads its own process group
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._close_errors()

    def fileno(self) -> int:
        """Returns the descriptor on which replies arrive."""
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def send(self, message: Any, *, timeout_s: float) -> None:
        """Sends a message; a process that died is reported where its reply is read.

        Raises:
            TimeoutError: the process did not read the message in time.
        """
        assert self._process.stdin is not None
        stdin = self._process.stdin.fileno()
        unsent = memoryview(json.dumps(message).encode() + b"\n")
        end = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as waiting, suppress(BrokenPipeError):
            waiting.register(stdin, selectors.EVENT_WRITE)
            while unsent:
                if not waiting.select(max(0.0, end - time.monotonic())):
                    raise TimeoutError
                with suppress(BlockingIOError):
                    unsent = unsent[os.write(stdin, unsent) :]

    def receive(self, *, timeout_s: float) -> Any:
        """Waits for the next reply.

        Raises:
            TimeoutError: no whole reply arrived in time.
            WorkerDiedError: the process ended.
        """
        end = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as waiting:
            waiting.register(self, selectors.EVENT_READ)
            while (reply := self.read()) is NOT_YET:
                if not waiting.select(max(0.0, end - time.monotonic())):
                    raise TimeoutError
        return reply

    def read(self) -> Any:
        """Returns the next reply if it has arrived whole, else ``NOT_YET``. Does not wait.

        Raises:
            WorkerDiedError: the process ended.
        """
        end = self._unread.find(b"\n")
        with suppress(BlockingIOError):
            while end < 0:
                part = os.read(self.fileno(), READ_SIZE)
                if not part:
                    raise WorkerDiedError(self.ending())
                # Only the new part is searched: a reply may have many megabytes.
                found = part.find(b"\n")
                end = found if found < 0 else len(self._unread) + found
                self._unread += part
        if end < 0:
            return NOT_YET
        line = bytes(self._unread[:end])
        del self._unread[: end + 1]
        return json.loads(line)

    def ending(self) -> str:
        """Describes how the process died."""
        try:
            code = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            return "it closed its output"
        if code < 0:
            known = {number.value: number.name for number in signal.Signals}
            return f"killed by {known.get(-code, f'signal {-code}')}"
        said = self._said()
        return f"ended with status {code}{': ' + said[-1] if said else ''}"

    def _said(self) -> list[str]:
        if self._errors is None:
            return []
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace").strip().splitlines()

    def _close_errors(self) -> None:
        if self._errors is not None:
            self._errors.close()
