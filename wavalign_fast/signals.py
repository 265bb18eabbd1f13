"""Turns the signals that end a command into exceptions, so that unfinished work is cleaned up."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = (signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """A signal ended the command. Like Ctrl-C, it is not caught by ``except Exception``."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


_received: list[int] = []
"""The signal that raised ``Interrupted`` during the current command."""


def raise_if_interrupted() -> None:
    """Raises ``Interrupted`` again, in case the import of a library swallowed it."""
    if _received:
        raise Interrupted(_received[0])


def interruption(error: BaseException) -> KeyboardInterrupt | None:
    """Returns the signal behind ``error``, for example behind an import that it interrupted."""
    at: BaseException | None = error
    while at is not None:
        if isinstance(at, KeyboardInterrupt):
            return at
        at = at.__cause__ or at.__context__
    return Interrupted(_received[0]) if _received else None


@contextmanager
def signals_as_exceptions() -> Iterator[None]:
    """Makes SIGTERM and SIGHUP raise ``Interrupted``, so that unfinished work is cleaned up."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in ENDING:
            # An ignored signal (nohup) stays ignored, and a handler of somebody else stays.
            if signal.getsignal(number) == signal.SIG_DFL:
                before[number] = signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _received.clear()


def _interrupt(number: int, frame: FrameType | None) -> None:
    # `timeout` and closing terminals send their signal twice; the second must not stop the
    # clean-up.
    for ending in ENDING:
        if signal.getsignal(ending) is _interrupt:
            signal.signal(ending, signal.SIG_IGN)
    _received.append(number)
    raise Interrupted(number)
