"""Writes the metrics of each step to ``metrics.jsonl`` and to TensorBoard."""

import functools
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from wavalign_fast.errors import UserError, described, one_line
from wavalign_fast.train.atomic_files import to_json, write_text

logger = logging.getLogger(__name__)


class MetricWriter(Protocol):
    """Writes the metrics of a step somewhere."""

    def write(self, step: int, time_s: float, metrics: Mapping[str, float]) -> None:
        """Writes ``metrics`` of ``step``; ``time_s`` is the training time so far in seconds."""
        ...

    def close(self) -> None:
        """Flushes and closes the output."""
        ...


class JsonlWriter:
    """Writes one JSON object per step and line; a resumed run drops the lines after ``step``."""

    def __init__(self, path: Path, step: int) -> None:
        self._path = path
        if path.exists():
            kept = [line + "\n" for at, line in read_metric_lines(path) if at <= step]
            write_text(path, "".join(kept))
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, time_s: float, metrics: Mapping[str, float]) -> None:
        """Appends one line and flushes it, so that the run can be watched while it trains."""
        record = {"step": step, "time_s": round(time_s, 3), **metrics}
        try:
            self._file.write(to_json(record) + "\n")
            self._file.flush()
        except OSError as error:
            raise UserError(f"{self._path} cannot be written: {error.strerror}") from error

    def close(self) -> None:
        """Closes the file; ``write`` has reported any error already."""
        with suppress(OSError):
            self._file.close()


class OptionalWriter:
    """A writer beside ``metrics.jsonl``: its error is logged once, then it writes no more."""

    def __init__(self, what: str) -> None:
        self._what = what

    def _give_up(self) -> None:
        raise NotImplementedError

    @contextmanager
    def _attempt(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # the package may be of any version
            self._give_up()
            logger.warning(
                "%s cannot be written (%s): metrics go to metrics.jsonl only",
                self._what,
                one_line(error),
            )


class TensorBoardWriter(OptionalWriter):
    """Writes TensorBoard event files; a resumed run hides the events after ``step``."""

    def __init__(self, writer_class: Any, directory: Path, step: int) -> None:
        super().__init__(str(directory))
        self._writer: Any = None
        with self._attempt():
            self._writer = writer_class(str(directory), purge_step=step + 1 if step else None)

    def write(self, step: int, time_s: float, metrics: Mapping[str, float]) -> None:
        """Adds one scalar per metric."""
        with self._attempt():
            for name, value in metrics.items() if self._writer else ():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes and closes the event file."""
        with self._attempt():
            if self._writer:
                self._writer.close()

    def _give_up(self) -> None:
        self._writer = None


def open_tensorboard(directory: Path, step: int) -> TensorBoardWriter | None:
    """Opens the event files of a run directory; ``None`` if TensorBoard is not usable here."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError:
        _warn_once("tensorboard is not installed: metrics go to metrics.jsonl only")
    except (Exception, SystemExit) as error:
        _warn_once(
            f"tensorboard cannot be imported ({described(error)}): metrics go to metrics.jsonl only"
        )
    else:
        return TensorBoardWriter(SummaryWriter, directory / "tensorboard", step)
    return None


@functools.cache
def _warn_once(message: str) -> None:
    """Logs a warning once per command, not once per arm."""
    logger.warning(message)


def read_metric_lines(path: Path) -> list[tuple[float, str]]:
    """Reads the (step, line) pairs of a ``metrics.jsonl``; none if the file does not exist.

    An incomplete last line is left out: a power failure leaves one.

    Raises:
        UserError: another line is damaged.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().removesuffix(b"\n").split(b"\n")
    records = []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        if (record := _record(line)) is not None:
            records.append(record)
        elif number < len(lines):
            raise UserError(f"{path}:{number}: not a metrics record: {line[:60]!r}")
    return records


def _record(line: bytes) -> tuple[float, str] | None:
    """Returns step and text of a line, or ``None`` if it is not a metrics record."""
    try:
        text = line.decode("utf-8")
        step = json.loads(text)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return (step, text) if isinstance(step, int | float) else None
