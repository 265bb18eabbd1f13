"""The one exception type that means: the user can fix this."""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """A mistake in what the user gave. The message is one line: value seen, value wanted."""


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
    """The message of ``error`` on one line, or its type when it has no message."""
    if isinstance(error, FileNotFoundError) and error.filename:
        return f"no such file: {error.filename}"
    return " ".join(str(error).split()) or type(error).__name__
