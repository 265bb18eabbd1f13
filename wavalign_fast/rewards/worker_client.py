"""Asks a worker process questions, each by a deadline, and replaces it where it died."""

import time
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from wavalign_fast.errors import UserError, one_line
from wavalign_fast.rewards.worker_process import WorkerDiedError, WorkerProcess


class WorkerClient:
    """Starts the worker at the first question. Not for several threads at once.

    Args:
        name: of what the worker runs; errors start with it.
        command: of the process.
        load: the first message. A reply with ``error`` ends the process.
        error: raised on every failure.
        env: environment variables that differ from this process's.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        load: Mapping[str, Any],
        *,
        error: type[UserError],
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self._command, self._message, self._error, self._env = command, load, error, env
        self._worker: WorkerProcess | None = None
        self.loaded: dict[str, Any] = {}
        """The reply to ``load``."""

    def load(self, *, timeout_s: float) -> None:
        """Starts the process and sends ``load``, unless that is done."""
        self._ready(time.monotonic() + timeout_s, timeout_s)

    def ask(self, message: Mapping[str, Any], purpose: str, *, timeout_s: float) -> dict[str, Any]:
        """Returns the reply; the time includes a start where one is needed.

        Args:
            message: as JSON can hold it.
            purpose: ends "waited 5 s", for an error.
            timeout_s: seconds.

        Raises:
            UserError: the class ``error``: the process cannot start, died, was late, or failed.
        """
        end = time.monotonic() + timeout_s
        worker = self._ready(end, timeout_s)
        return self._reply(worker, message, purpose, end, timeout_s)

    def close(self) -> None:
        """Ends the process. The next question starts another."""
        if self._worker is not None:
            self._worker.kill()
            self._worker = None

    def _ready(self, end: float, timeout_s: float) -> WorkerProcess:
        if self._worker is not None:
            return self._worker
        try:
            worker = WorkerProcess(self._command, env=self._env, show_output=True)
        except OSError as error:
            raise self._error(f"{self.name}: no process: {one_line(error)}") from error
        self._worker = worker
        weakref.finalize(self, worker.kill)
        self._reply(worker, None, "for its process to start", end, timeout_s)
        try:
            self.loaded = self._reply(worker, self._message, "for its import", end, timeout_s)
        except UserError:
            self.close()
            raise
        return worker

    def _reply(
        self,
        worker: WorkerProcess,
        message: Mapping[str, Any] | None,
        purpose: str,
        end: float,
        timeout_s: float,
    ) -> Any:
        """Sends a message if there is one, and returns the reply."""
        try:
            if message is not None:
                worker.send(message, timeout_s=end - time.monotonic())
            reply = worker.receive(timeout_s=end - time.monotonic())
        except TimeoutError as error:
            self.close()
            raise self._error(
                f"{self.name}: waited {timeout_s:g} s {purpose}; its process was stopped"
            ) from error
        except WorkerDiedError as error:
            self.close()
            raise self._error(f"{self.name}: its process is gone: {error}") from error
        except BaseException:  # an interrupted exchange leaves a reply that belongs to no question
            self.close()
            raise
        if isinstance(reply, dict) and "error" in reply:
            raise self._error(f"{self.name}: {reply['error']}")
        return reply
