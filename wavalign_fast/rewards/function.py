"""A reward function of the user, e.g. ``my_file.py:score``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wavalign_fast.errors import UserError, shown
from wavalign_fast.rewards.worker_client import WorkerClient
from wavalign_fast.rewards.worker_process import command

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
        self._worker = WorkerClient(
            name,
            command(MODULE, "main()"),
            {"load": name, "arguments": self.arguments},
            error=RewardError,
        )

    def load(self) -> None:
        """Starts the process and imports the function, unless that is done.

        Raises:
            RewardError: the function cannot be imported, or cannot be called with these arguments.
        """
        self._worker.load(timeout_s=self.timeout_s)

    def __call__(self, answers: Sequence[Mapping[str, Any]]) -> list[float | None]:
        """Returns one reward per answer, ``None`` for a missing one; see docs/own_model.md.

        Raises:
            RewardError: the function failed, was not done in time, or returned something else.
        """
        if not answers:
            return []
        message, purpose = {"answers": list(answers)}, f"for {len(answers)} answers"
        reply = self._worker.ask(message, purpose, timeout_s=self.timeout_s)
        return list(reply["rewards"])

    def close(self) -> None:
        """Ends the process. The next call starts another."""
        self._worker.close()
