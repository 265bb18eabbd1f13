"""Where a step's metrics go: ``metrics.jsonl`` always, TensorBoard where it is installed."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from wavalign_fast.errors import UserError
from wavalign_fast.train.files import to_json, write_text

logger = logging.getLogger(__name__)


class MetricWriter(Protocol):
    """Takes the metrics of one step."""

    def write(self, step: int, time_s: float, metrics: Mapping[str, float]) -> None:
        """Records ``metrics`` of ``step``, ``time_s`` seconds of training after the start."""
        ...

    def close(self) -> None:
        """Everything written is on disk after this."""
        ...


class JsonlWriter:
    """One JSON object a step, one line each; on resume, lines after ``step`` are dropped."""

    def __init__(self, path: Path, step: int) -> None:
        _keep_until(path, step)
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, time_s: float, metrics: Mapping[str, float]) -> None:
        """Appends one line and flushes it, so that a run can be followed while it trains."""
        record = {"step": step, "time_s": round(time_s, 3), **metrics}
        self._file.write(to_json(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class TensorBoardWriter:
    """TensorBoard event files; a resumed run hides what was logged after ``step``."""

    def __init__(self, directory: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(directory), purge_step=step + 1 if step else None)

    def write(self, step: int, time_s: float, metrics: Mapping[str, float]) -> None:
        """Adds one scalar a metric."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes and closes the event file."""
        self._writer.close()


def open_writers(directory: Path, step: int) -> list[MetricWriter]:
    """The writers of a run directory, continuing after ``step``."""
    writers: list[MetricWriter] = [JsonlWriter(directory / "metrics.jsonl", step)]
    try:
        writers.append(TensorBoardWriter(directory / "tensorboard", step))
    except ImportError:
        logger.warning("tensorboard is not installed: metrics go to metrics.jsonl only")
    return writers


def _keep_until(path: Path, step: int) -> None:
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = []
    for number, line in enumerate(lines, start=1):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError) as error:
            # A machine that lost power can leave half a last line; elsewhere it is damage.
            if number < len(lines):
                raise UserError(f"{path}:{number}: not a metrics record: {line[:60]!r}") from error
    write_text(path, "".join(line + "\n" for line in kept))
