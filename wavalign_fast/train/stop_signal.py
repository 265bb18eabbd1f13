"""Stops a run between two steps after a signal, so that a checkpoint can be saved."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from typing_extensions import Self

from wavalign_fast.signals import ENDING, raise_if_interrupted


class Stopped(Exception):
    """A signal stopped the run; its checkpoint is saved."""

    def __init__(self, signal_number: int, step: int, checkpoint: str) -> None:
        self.signal_number = signal_number
        name = signal.Signals(signal_number).name
        super().__init__(f"stopped by {name} after step {step}; checkpoint saved in {checkpoint}")


class StopSignal:
    """Turns the first SIGINT, SIGTERM or SIGHUP into a flag, so that the run can be saved.

    A second Ctrl-C acts as usual. Further SIGTERM and SIGHUP have no effect, because `timeout` and
    closing terminals send theirs twice. A signal that was ignored (`nohup`) stays ignored.
    """

    SIGNALS = (signal.SIGINT, *ENDING)

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        raise_if_interrupted()
        # Only the main thread can install handlers; in other threads the flag is never set.
        if threading.current_thread() is threading.main_thread():
            for number in self.SIGNALS:
                # None means a handler that was not installed by Python and cannot be restored.
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
