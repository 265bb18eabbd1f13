"""Around a command: signals, and standard streams that nobody reads or that know few letters."""

import codecs
import errno
import io
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TextIO

READER_GONE = {errno.EPIPE, errno.EIO, errno.ECONNRESET, errno.ENXIO}
"""How a write fails once a pipe's reader has ended or a terminal was closed."""

ENDING = (signal.SIGTERM, signal.SIGHUP)

SPELLED = {
    "λ": "lambda",
    "σ": "sigma",
    "τ": "tau",
    "β": "beta",
    "ε": "epsilon",
    "·": "*",
    "×": "x",
    "−": "-",
    "–": "-",
    "—": "-",
    "→": "->",
    "←": "<-",
    "≤": "<=",
    "≥": ">=",
    "…": "...",
    "’": "'",
    "✓": "yes",
    "✗": "no",
}
"""ASCII for the signs that this program writes."""
SPELL_OUT = "wavalign.spell_out"


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


class Streams:
    """stdout and stderr while a command runs: writing to them never ends it.

    What cannot be encoded is spelled in ASCII. Once a write has failed, the rest is dropped.
    """

    def __init__(self) -> None:
        codecs.register_error(SPELL_OUT, _spell_out)
        self._raw = [_Raw(name) for name in ("stdout", "stderr") if _is_real(name)]

    def failure(self) -> str | None:
        """Why output was lost; ``None`` where all was written, or nobody was there to read it."""
        for raw in self._raw:
            raw.text.flush()
        for raw in self._raw:
            if raw.error is not None and raw.error.errno not in READER_GONE:
                return f"{raw.stream} cannot be written: {raw.error.strerror}"
        return None


class _Raw(io.FileIO):
    """The file behind a standard stream, with its text layer, which takes the stream's place."""

    def __init__(self, stream: str) -> None:
        before: io.TextIOWrapper = getattr(sys, stream)
        before.flush()
        super().__init__(before.fileno(), "w", closefd=False)
        self.stream = stream
        self.error: OSError | None = None
        self.text = io.TextIOWrapper(
            # A raw buffer: unbuffered, as with python -u.
            self if isinstance(before.buffer, io.RawIOBase) else io.BufferedWriter(self),
            encoding=before.encoding,
            errors=SPELL_OUT,
            line_buffering=before.line_buffering,
            write_through=before.write_through,
        )

    def write(self, data: Any) -> int:
        """Writes, or drops what cannot be written."""
        if self.error is None:
            try:
                return super().write(data)
            except OSError as error:
                self.error = error
        return memoryview(data).nbytes


@contextmanager
def standard_streams() -> Iterator[Streams]:
    """Puts ``Streams`` in the place of stdout and stderr; captured ones are left alone."""
    before = sys.stdout, sys.stderr
    streams = Streams()
    for raw in streams._raw:
        setattr(sys, raw.stream, raw.text)
    try:
        yield streams
    finally:
        streams.failure()
        sys.stdout, sys.stderr = before


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


def _is_real(stream: str) -> bool:
    """Whether this stream is the process's own, not one that a test or a notebook captures."""
    current: TextIO | None = getattr(sys, stream)
    return type(current) is io.TextIOWrapper and current is getattr(sys, f"__{stream}__")


def _spell_out(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    unknown = error.object[error.start : error.end]
    spelled = [
        SPELLED.get(sign) or sign.encode("ascii", "backslashreplace").decode() for sign in unknown
    ]
    return "".join(spelled), error.end
