"""A reward function of the user, e.g. ``my_file.py:score``."""

import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wavalign_fast.errors import UserError, one_line, shown
from wavalign_fast.rewards.worker_process import WorkerDiedError, WorkerProcess, command

MODULE = "wavalign_fast.rewards.serving"


class RewardError(UserError):
    """The reward function failed, or gave no rewards in time."""


class RewardFunction:
    """Calls ``score(answers, **arguments)`` in a process of its own, and waits only so long.

    The process lives from the first call to the end, so what the function keeps in memory stays.
    It is replaced after a call that took too long or killed it. An ``async`` function is awaited.

    Args:
        name: ``FILE.py:FUNCTION`` or ``PACKAGE.MODULE:FUNCTION``.
        timeout_s: seconds that a call may take, with the start of the process if it has none.
        arguments: further arguments of the function, as JSON can hold them.

    Raises:
        UserError: ``name`` has another form, or there is no such file.
    """

    def __init__(
        self, name: str, *, timeout_s: float, arguments: Mapping[str, Any] | None = None
    ) -> None:
        source, colon, function = name.rpartition(":")
        if not colon or not source or not function.isidentifier():
            raise UserError(
                f"{shown(name)} given, wanted FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION"
            )
        if source.endswith(".py") and not Path(source).is_file():
            raise UserError(f"no such file: {Path(source).absolute()}")
        self.name = name
        self.timeout_s = timeout_s
        self.arguments = dict(arguments or {})
        self._worker: WorkerProcess | None = None

    def load(self) -> None:
        """Starts the process and imports the function, unless that is done.

        Raises:
            RewardError: the function cannot be imported, or cannot be called with these arguments.
        """
        self._loaded(time.monotonic() + self.timeout_s)

    def __call__(self, answers: Sequence[Mapping[str, Any]]) -> list[float | None]:
        """Returns one reward per answer, ``None`` for a missing one; see docs/own_model.md.

        Raises:
            RewardError: the function failed, was not done in time, or returned something else.
        """
        if not answers:
            return []
        end = time.monotonic() + self.timeout_s
        worker = self._loaded(end)
        message = {"answers": list(answers)}
        return list(self._reply(worker, message, f"for {len(answers)} answers", end)["rewards"])

    def _loaded(self, end: float) -> WorkerProcess:
        """Returns the process, ready to be called; it has time until ``end`` to get there."""
        if self._worker is not None:
            return self._worker
        try:
            worker = WorkerProcess(command(MODULE, "main()"), show_output=True)
        except OSError as error:
            raise RewardError(f"{self.name}: no process: {one_line(error)}") from error
        self._worker = worker
        weakref.finalize(self, worker.kill)
        self._reply(worker, None, "for its process to start", end)
        message = {"load": self.name, "arguments": self.arguments}
        self._reply(worker, message, "for its import", end)
        return worker

    def close(self) -> None:
        """Ends the process. The next call starts another."""
        if self._worker is not None:
            self._worker.kill()
            self._worker = None

    def _reply(self, worker: WorkerProcess, message: Any, purpose: str, end: float) -> Any:
        """Sends a message if there is one, and returns the reply."""
        try:
            if message is not None:
                worker.send(message, timeout_s=end - time.monotonic())
            reply = worker.receive(timeout_s=end - time.monotonic())
        except TimeoutError as error:
            self.close()
            raise RewardError(
                f"{self.name}: waited {self.timeout_s:g} s {purpose}; its process was stopped"
            ) from error
        except WorkerDiedError as error:
            self.close()
            raise RewardError(f"{self.name}: its process is gone: {error}") from error
        except BaseException:  # an interrupted exchange leaves a reply that belongs to no question
            self.close()
            raise
        if isinstance(reply, dict) and "error" in reply:
            if "answers" not in (message or {}):
                self.close()
            raise RewardError(f"{self.name}: {reply['error']}")
        return reply
