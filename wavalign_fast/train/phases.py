"""Measures the phases of a step."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Measures the seconds spent in each phase of a step.

    The time of a phase inside another one counts for the inner one alone.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inside = 0.0  # of the phases within the present one, so far

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        before, self._inside = self._inside, 0.0
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[phase] = self.seconds.get(phase, 0.0) + spent - self._inside
            self._inside = before + spent

    def metrics(self) -> dict[str, float]:
        """Returns ``perf/<phase>_s`` for every phase that ran."""
        return {f"perf/{phase}_s": spent for phase, spent in self.seconds.items()}
