"""Stops a run between two steps when a signal asks for it, so that it can be saved."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from typing_extensions import Self

from wavalign_fast.signals import raise_if_interrupted


class Stopped(Exception):
    """The run was stopped by a signal after its checkpoint was saved."""

    def __init__(self, signal_number: int, step: int, checkpoint: str) -> None:
        self.signal_number = signal_number
        name = signal.Signals(signal_number).name
        super().__init__(f"stopped by {name} after step {step}; checkpoint saved in {checkpoint}")


class StopSignal:
    """Turns the first SIGINT, SIGTERM or SIGHUP into a flag, so that the run can be saved.

    A second Ctrl-C acts as it always did. Further SIGTERM and SIGHUP change nothing: `timeout` and
    terminals that close send theirs twice. A signal that was ignored, as under `nohup`, stays so.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        raise_if_interrupted()
        # Python lets only the main thread install handlers; elsewhere the flag is never set.
        if threading.current_thread() is threading.main_thread():
            for number in self.SIGNALS:
                # None: a handler that Python did not install and could not put back.
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number in list(self._before):
            self._restore(number)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = number
        if signal.SIGINT in self._before:
            self._restore(signal.SIGINT)

    def _restore(self, number: int) -> None:
        signal.signal(number, self._before.pop(number))
