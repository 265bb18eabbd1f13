"""The one exception type that means: the user can fix this; and messages that stay short."""

import reprlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

MAX_MESSAGE = 500
MAX_VALUE = 60


class UserError(ValueError):
    """A mistake in what the user gave. The message is one line: value seen, value wanted."""


class DamagedFileError(UserError):
    """A file of a run that cannot be read: truncated, overwritten, or of another program."""


@contextmanager
def user_input(what: str) -> Iterator[None]:
    """Code in this block fails only on the user's input: its errors become one-line ``UserError``.

    Wrap the smallest block that reads what a user wrote, so that a bug keeps its traceback.
    """
    try:
        yield
    except UserError:
        raise
    except (ValueError, OSError) as error:
        raise UserError(f"{what}: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """The message of ``error`` on one short line, or its type when it has no message.

    What a terminal would act on (escape codes, NUL) is written as its escape.
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
    """Type and message of an error on one short line."""
    return f"{type(error).__name__}: {one_line(error)}"


def shorten(text: str, limit: int = MAX_VALUE) -> str:
    """``text``, its middle left out where it is longer than ``limit`` characters."""
    if len(text) <= limit:
        return text
    # A message begins with what is wrong and ends with what is wanted: both stay.
    end = (limit - 3) // 3
    return f"{text[: limit - 3 - end]}...{text[-end:]}"


def shown(value: Any) -> str:
    """``repr`` of a value a user gave, short however large the value is."""
    return _SHORT.repr(value)


def did_you_mean(given: str, known: Iterable[str], meaning: Mapping[str, str] | None = None) -> str:
    """``; did you mean X?`` for the known name nearest to ``given``, or nothing.

    ``meaning`` says what to write for a known name, if it is not the name itself.
    """
    # The comparison takes quadratic time, and no known name is this long.
    close = get_close_matches(given, list(known), n=1) if len(given) < 200 else []
    if not close:
        return ""
    return f"; did you mean {meaning[close[0]] if meaning else close[0]}?"


class _Short(reprlib.Repr):
    """Containers down to a few items, text and numbers down to their ends."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = MAX_VALUE
        self.maxlevel = 3

    def repr_instance(self, x: Any, level: int) -> str:
        """An array is written over several lines."""
        return super().repr_instance(x, level).replace("\n", " ")

    def repr_int(self, x: int, level: int) -> str:
        """Python refuses to write out a number of more than 4300 digits."""
        if x.bit_length() > 14_000:
            return f"a number of {x.bit_length()} bits"
        return super().repr_int(x, level)


_SHORT = _Short()
