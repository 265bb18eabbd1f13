"""Signals that end a command, as exceptions that clean up what is half done."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = (signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """A signal that ends the command; like Ctrl-C, it passes every ``except Exception``."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


_received: list[int] = []
"""The signal that raised ``Interrupted`` in the command that runs."""


def raise_if_interrupted() -> None:
    """Raises ``Interrupted`` again: a library's import may have caught the first and gone on."""
    if _received:
        raise Interrupted(_received[0])


def interruption(error: BaseException) -> KeyboardInterrupt | None:
    """The signal that ``error`` was raised for, as where an import fails because it was cut off."""
    at: BaseException | None = error
    while at is not None:
        if isinstance(at, KeyboardInterrupt):
            return at
        at = at.__cause__ or at.__context__
    return Interrupted(_received[0]) if _received else None


@contextmanager
def signals_as_exceptions() -> Iterator[None]:
    """SIGTERM and SIGHUP raise ``Interrupted``, so that what is half done is cleaned up."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in ENDING:
            # One that is ignored, as under nohup, stays so; another's handler stays in place.
            if signal.getsignal(number) == signal.SIG_DFL:
                before[number] = signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _received.clear()


def _interrupt(number: int, frame: FrameType | None) -> None:
    # `timeout` and terminals that close send theirs twice: a second one must not cut the clean-up
    # off.
    for ending in ENDING:
        if signal.getsignal(ending) is _interrupt:
            signal.signal(ending, signal.SIG_IGN)
    _received.append(number)
    raise Interrupted(number)
