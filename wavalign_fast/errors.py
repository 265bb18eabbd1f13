"""Errors that the user can fix, and helpers that keep their messages short."""

import reprlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

ErrorT = TypeVar("ErrorT", bound=Exception)

MAX_MESSAGE = 500
MAX_VALUE = 60


class UserError(ValueError):
    """A mistake in the user's input. The message is one line with the value seen and wanted."""


class OtherRankError(UserError):
    """Another rank of the run failed, and reports the error itself."""


def shared(error: ErrorT) -> ErrorT:
    """Marks an error that every rank of the run knows of, and returns it."""
    error._on_every_rank = True  # type: ignore[attr-defined]
    return error


def is_shared(error: BaseException) -> bool:
    """Whether every rank knows of ``error``, so that none waits for the one that raises it."""
    return getattr(error, "_on_every_rank", False)


class KeyedError(UserError):
    """The message begins with the key at fault; ``naming`` puts no other in front of it."""


class DamagedFileError(UserError):
    """A file of a run is truncated or damaged, or was written by another program."""


class CacheError(OSError):
    """A directory that keeps results for later runs cannot be read or written."""


@contextmanager
def user_input(what: str) -> Iterator[None]:
    """Turns ``ValueError`` and ``OSError`` of this block into a one-line ``UserError``.

    Wrap the smallest block that reads user input, so that a bug keeps its traceback.
    """
    try:
        yield
    except UserError:
        raise
    except (ValueError, OSError) as error:
        raise UserError(f"{what}: {one_line(error)}") from error


@contextmanager
def naming(key: str) -> Iterator[None]:
    """Like ``user_input``, but puts the configuration's key in front of a ``UserError`` too."""
    try:
        with user_input(key):
            yield
    except KeyedError:
        raise
    except UserError as error:
        named = str(error).startswith(f"{key}: ")
        raise UserError(str(error) if named else f"{key}: {error}") from error


@contextmanager
def using_cache(directory: Path) -> Iterator[None]:
    """Makes an ``OSError`` of this block a ``CacheError`` that names the directory."""
    try:
        yield
    except OSError as error:
        raise CacheError(f"{directory} cannot be used: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """Returns the message of ``error`` on one short line, or its type if it has no message.

    Characters that a terminal would act on (escape codes, NUL) are escaped.
    """
    message = str(error)
    if isinstance(error, FileNotFoundError) and error.filename:
        message = f"no such file: {error.filename}"
    elif isinstance(error, OSError) and error.strerror:
        message = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    message = shorten(" ".join(message.split()), MAX_MESSAGE) or type(error).__name__
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in message
    )


def described(error: BaseException) -> str:
    """Returns type and message of an error on one short line."""
    return f"{type(error).__name__}: {one_line(error)}"


def shorten(text: str, limit: int = MAX_VALUE) -> str:
    """Returns ``text`` with its middle left out if it is longer than ``limit`` characters."""
    if len(text) <= limit:
        return text
    # A message begins with what is wrong and ends with what is wanted; keep both.
    end = (limit - 3) // 3
    return f"{text[: limit - 3 - end]}...{text[-end:]}"


def shown(value: Any) -> str:
    """Returns the ``repr`` of a value, shortened if the value is large."""
    return _SHORT.repr(value)


def did_you_mean(given: str, known: Iterable[str], meaning: Mapping[str, str] | None = None) -> str:
    """Returns ``; did you mean X?`` for the known name nearest to ``given``, or an empty text.

    ``meaning`` maps a known name to the text to suggest instead of it.
    """
    # Comparing takes quadratic time, and no known name is this long.
    close = get_close_matches(given, list(known), n=1) if len(given) < 200 else []
    if not close:
        return ""
    return f"; did you mean {meaning[close[0]] if meaning else close[0]}?"


class _Short(reprlib.Repr):
    """Shows a few items of a container, and the two ends of a long text or number."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = MAX_VALUE
        self.maxlevel = 3

    def repr_instance(self, x: Any, level: int) -> str:
        """Joins the lines of a value whose ``repr`` has several, such as an array."""
        return super().repr_instance(x, level).replace("\n", " ")

    def repr_int(self, x: int, level: int) -> str:
        """Handles numbers of more than 4300 digits, which Python refuses to write out."""
        if x.bit_length() > 14_000:
            return f"a number of {x.bit_length()} bits"
        return super().repr_int(x, level)


_SHORT = _Short()
