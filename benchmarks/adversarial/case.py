"""The adversarial case, and how it reports what it found."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from ..providers import Calls


class Failed(Exception):
    """A wrong result; the message names the value seen and the value wanted."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One problem that users of fused losses have reported."""

    name: str
    title: str
    """What must hold."""
    items: tuple[int, ...]
    """Numbers of the groups of reports that it covers, as in ``GROUPS``."""
    source: str
    """Upstream reports, and a remark on them; "" for a finding of our own."""
    run: Callable[[Calls], str | None]
    """Returns a remark or ``None`` if the case passes. Raises ``Failed`` if the result is wrong and
    ``Unsupported`` if the provider has no such function. An error of the provider, which refuses
    the input, passes through."""
    slow: bool = False


added: list[Case] = []


def case(
    name: str, title: str, *, items: tuple[int, ...], source: str = "", slow: bool = False
) -> Callable[[Callable[[Calls], str | None]], Callable[[Calls], str | None]]:
    """Registers the decorated function as a case."""

    def add(run: Callable[[Calls], str | None]) -> Callable[[Calls], str | None]:
        added.append(Case(name=name, title=title, items=items, source=source, run=run, slow=slow))
        return run

    return add


def want(holds: bool, message: str) -> None:
    """Raises ``Failed(message)`` unless ``holds``. A comparison with NaN does not hold."""
    if not holds:
        raise Failed(message)


# Errors with which a provider may refuse an input. Any other error is a fault of the provider.
REFUSALS = (ValueError, TypeError, RuntimeError, IndexError, NotImplementedError, AssertionError)


def refusal(call: Callable[[], object]) -> str | None:
    """The error with which the provider refuses the input; ``None`` if the call returns."""
    try:
        call()
    except REFUSALS as error:
        return error_line(error)
    return None


def error_line(error: BaseException) -> str:
    """The type and first line of an error, shortened to fit a table."""
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    # Paths of this machine do not belong in a result.
    first = re.sub(r"(/[^\s/]+){2,}/", "", lines[0])
    return f"{type(error).__name__}: {first[:160]}"
