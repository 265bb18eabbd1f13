"""What a case is, and how it says what it saw."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from ..providers import Calls


class Failed(Exception):
    """What was seen and what was wanted."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One thing that users of fused losses have run into."""

    name: str
    title: str
    """What must hold."""
    items: tuple[int, ...]
    """Groups of reports that it stands for, as in ``GROUPS``."""
    source: str
    """Upstream reports and a remark on them; "" where the finding is our own."""
    run: Callable[[Calls], str | None]
    """Returns if it holds, with a remark or ``None``; raises ``Failed`` where the result is wrong,
    ``Unsupported`` where the provider has no such function, and lets the provider's own error
    through where that refuses the input."""
    slow: bool = False


added: list[Case] = []


def case(
    name: str, title: str, *, items: tuple[int, ...], source: str = "", slow: bool = False
) -> Callable[[Callable[[Calls], str | None]], Callable[[Calls], str | None]]:
    """Puts the function it decorates on the list."""

    def add(run: Callable[[Calls], str | None]) -> Callable[[Calls], str | None]:
        added.append(Case(name=name, title=title, items=items, source=source, run=run, slow=slow))
        return run

    return add


def want(holds: bool, message: str) -> None:
    """Raises ``Failed(message)`` unless it holds; a comparison with NaN does not."""
    if not holds:
        raise Failed(message)


# What a provider may answer to an input that it does not take. Anything else is a fault in it.
REFUSALS = (ValueError, TypeError, RuntimeError, IndexError, NotImplementedError, AssertionError)


def refusal(call: Callable[[], object]) -> str | None:
    """The error with which the provider refuses, or ``None`` if the call returns."""
    try:
        call()
    except REFUSALS as error:
        return error_line(error)
    return None


def error_line(error: BaseException) -> str:
    """Kind and first line of an error, with its message cut to what a table can hold."""
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    # Where a compiler put its file is the machine's business.
    first = re.sub(r"(/[^\s/]+){2,}/", "", lines[0])
    return f"{type(error).__name__}: {first[:160]}"
