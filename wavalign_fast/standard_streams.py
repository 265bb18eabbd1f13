"""Keeps a command running when stdout or stderr lose their reader or cannot encode a character."""

import codecs
import errno
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

READER_GONE = {errno.EPIPE, errno.EIO, errno.ECONNRESET, errno.ENXIO}
"""Errors of a write after a pipe's reader has ended or a terminal was closed."""

SPELLED = {
    "λ": "lambda",
    "σ": "sigma",
    "τ": "tau",
    "β": "beta",
    "ε": "epsilon",
    "Δ": "delta",
    "µ": "u",
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
"""ASCII spellings of the characters that this program prints."""
SPELL_OUT = "wavalign.spell_out"


class Streams:
    """stdout and stderr of a command, whose failure never ends it.

    Characters that a stream cannot encode are spelled in ASCII. After a failed write the rest of
    the output is dropped.
    """

    def __init__(self) -> None:
        codecs.register_error(SPELL_OUT, _spell_out)
        self._raw = [_Raw(name) for name in ("stdout", "stderr") if _is_real(name)]

    def failure(self) -> str | None:
        """Returns why output was lost; ``None`` if none was, or if nobody was there to read it."""
        for raw in self._raw:
            raw.text.flush()
        for raw in self._raw:
            if raw.error is not None and raw.error.errno not in READER_GONE:
                return f"{raw.stream} cannot be written: {raw.error.strerror}"
        return None


class _Raw(io.FileIO):
    """The file behind a standard stream, with the text layer that replaces the stream."""

    def __init__(self, stream: str) -> None:
        before: io.TextIOWrapper = getattr(sys, stream)
        before.flush()
        super().__init__(before.fileno(), "w", closefd=False)
        self.stream = stream
        self.error: OSError | None = None
        self.text = io.TextIOWrapper(
            # A raw buffer means unbuffered, as with python -u.
            self if isinstance(before.buffer, io.RawIOBase) else io.BufferedWriter(self),
            encoding=before.encoding,
            errors=SPELL_OUT,
            line_buffering=before.line_buffering,
            write_through=before.write_through,
        )

    def write(self, data: Any) -> int:
        """Writes ``data``, or drops it after a failed write."""
        if self.error is None:
            try:
                return super().write(data)
            except OSError as error:
                self.error = error
        return memoryview(data).nbytes


@contextmanager
def standard_streams() -> Iterator[Streams]:
    """Replaces stdout and stderr by ``Streams``, unless they are captured."""
    before = sys.stdout, sys.stderr
    streams = Streams()
    for raw in streams._raw:
        setattr(sys, raw.stream, raw.text)
    try:
        yield streams
    finally:
        streams.failure()
        sys.stdout, sys.stderr = before


def _is_real(stream: str) -> bool:
    """Whether this stream is the process's own, not one captured by a test or a notebook."""
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
