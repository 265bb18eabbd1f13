"""Records a few steps of a run with torch's profiler, as a trace in the run directory.

Open the trace in https://ui.perfetto.dev or in Chrome under ``chrome://tracing``.
"""

import logging
from pathlib import Path
from typing import Any

import torch

from wavalign_fast.errors import one_line
from wavalign_fast.train.owned_files import PROFILE

logger = logging.getLogger(__name__)


class ProfileWindow:
    """Profiles the steps ``first`` to ``last`` of a run; does nothing without ``steps``.

    A run that is continued inside of the window records the rest of it.
    """

    def __init__(self, steps: tuple[int, int] | None, directory: Path) -> None:
        self._steps = steps
        self._directory = directory
        self._profiler: Any = None
        self._begun = 0

    def before_step(self, step: int) -> None:
        """Starts the profiler if the window begins with this step."""
        if self._steps is None or self._profiler is not None:
            return
        first, last = self._steps
        if first <= step <= last:
            # Without arguments it records the CPU, and a GPU that torch sees.
            self._profiler, self._begun = torch.profiler.profile(), step
            self._profiler.start()

    def after_step(self, step: int) -> None:
        """Writes the trace if the window ends with this step."""
        if self._profiler is not None and self._steps is not None and step >= self._steps[1]:
            self._write(step)

    def close(self, step: int) -> None:
        """Writes what was recorded of a window that the run did not reach the end of."""
        if self._profiler is not None:
            self._write(step)

    def _write(self, step: int) -> None:
        profiler, self._profiler = self._profiler, None
        profiler.stop()
        path = self._directory / PROFILE / f"steps-{self._begun}-{step}.json.gz"
        try:
            path.parent.mkdir(exist_ok=True)
            profiler.export_chrome_trace(str(path))
        except (OSError, RuntimeError) as error:  # a trace is not worth the run
            logger.warning("%s cannot be written: %s", path, one_line(error))
