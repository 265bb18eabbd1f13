"""Shows how far a command is."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """Gives a function of a title, what is done and what there is of it.

    Each title has a bar on a terminal, and elsewhere a line for every tenth of the work.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console,
                  disable=not console.is_terminal) as bars:  # fmt: skip
        tasks: dict[str, Any] = {}
        tenths: dict[str, int] = {}

        def show(title: str, done: int, total: int) -> None:
            if title not in tasks:
                tasks[title] = bars.add_task(title, total=total)
            bars.update(tasks[title], completed=done, total=total)
            tenth = done * 10 // max(total, 1)
            if not console.is_terminal and tenth > tenths.get(title, 0):
                tenths[title] = tenth
                print(f"{title}: {done} of {total}", file=sys.stderr)

        yield show
