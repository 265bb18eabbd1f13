"""What keeps a run honest when it is stopped or goes wrong: signals and non-finite gradients."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from typing_extensions import Self

from wavalign_fast.errors import UserError


class Stopped(Exception):
    """The run was stopped by a signal after its checkpoint was saved."""

    def __init__(self, signal_number: int, step: int, checkpoint: str) -> None:
        self.signal_number = signal_number
        name = signal.Signals(signal_number).name
        super().__init__(f"stopped by {name} after step {step}; checkpoint saved in {checkpoint}")


class StopSignal:
    """Turns the first SIGINT or SIGTERM into a flag; the second one acts as it always did."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        # Python lets only the main thread install handlers; elsewhere the flag is never set.
        if threading.current_thread() is threading.main_thread():
            for number in self.SIGNALS:
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()


class NonFiniteGuard:
    """Counts steps skipped for a non-finite gradient and stops after ``limit`` in a row."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.skipped = 0
        self.in_a_row = 0

    def record(self, *, finite: bool, step: int, loss: float, grad_norm: float) -> None:
        """Notes one step; raises when there is no hope left."""
        if finite:
            self.in_a_row = 0
            return
        self.skipped += 1
        self.in_a_row += 1
        if self.in_a_row >= self.limit:
            raise UserError(
                f"step {step}: loss {loss}, gradient norm {grad_norm}: not finite {self.in_a_row} "
                "steps in a row (train.max_nonfinite_steps); the weights are those before them; "
                "try a smaller optimizer.lr"
            )

    def state_dict(self) -> dict[str, int]:
        """The counters."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Puts the counters back."""
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]
