"""Prints the numbers of an evaluation."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from wavalign_fast.errors import DamagedFileError, one_line
from wavalign_fast.evaluation.prompts import RATED
from wavalign_fast.evaluation.run import REPORT_FILE

COUNTS = ("failed", "empty", "unparsable", "missing", "unended")


def read_report(directory: Path) -> dict[str, Any]:
    """Reads ``report.json``."""
    path = directory / REPORT_FILE
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(value, dict) and isinstance(value.get("categories"), dict):
            return value
        reason = "it has no categories"
    except (OSError, ValueError) as error:
        reason = one_line(error)
    raise DamagedFileError(f"{path} cannot be read: {reason}; evaluate again writes it anew")


def shown_value(task: str, numbers: Mapping[str, Any]) -> str:
    """Returns a value of a task's scale with its interval: ``62.5 (50.1 to 73.0)``."""
    return "–" if numbers["value"] is None else with_interval(numbers, 1 if task in RATED else 100)


def with_interval(numbers: Mapping[str, Any], factor: float = 1.0, *, signed: bool = False) -> str:
    """Returns a number and its interval, with two decimals on scales to 5 and one to 100."""
    digits = 2 if factor == 1 else 1
    form = f"{'+' if signed else ''}.{digits}f"
    value, low, high = (
        _signed(format(factor * numbers[name], form)) for name in ("value", "low", "high")
    )
    return f"{value} ({low} to {high})"


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("category", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _signed(text: str) -> str:
    """Writes a minus as one, and 0 without a sign."""
    return text.strip("+-") if not text.strip("+-0.") else text.replace("-", "−")


def print_table(directory: Path, console: Console) -> None:
    """Prints a line for each category, and IQ and EQ."""
    report = read_report(directory)
    table = _table("n", "score (95 %)", *COUNTS)
    for name, row in report["categories"].items():
        counts = [str(row[key]) if row[key] else "–" for key in COUNTS]
        table.add_row(name, str(row["n"]), shown_value(row["task"], row), *counts)
    for name in ("iq", "eq"):
        numbers = report[name]
        if numbers is not None and numbers["value"] is not None:
            digits = with_interval(numbers, 1.0)
            table.add_row(name.upper(), "", digits)
    console.print(table)
    for note in report["notes"]:
        console.print(f"note: {note}", highlight=False, soft_wrap=True, markup=False)


def print_comparison(found: Mapping[str, Any], console: Console) -> None:
    """Prints the difference of each category, and of IQ and EQ."""
    table = _table("n", "A", "B", "B − A (95 %)", "better", "worse")
    for name, row in found["categories"].items():
        table.add_row(name, str(row["n"]), *comparison_cells(row))
    for name in ("iq", "eq"):
        if found[name] is not None:
            table.add_row(name.upper(), "", "", "", with_interval(found[name], signed=True))
    console.print(table)
    for line in found["settings"]:
        console.print(f"note: other settings: {line}", highlight=False, markup=False)


def comparison_cells(row: Mapping[str, Any]) -> tuple[str, str, str, str, str]:
    """Returns both scores, their difference, and how many answers are better and worse."""
    if row["value"] is None:
        return ("–",) * 5
    factor = 1.0 if row["task"] in RATED else 100.0
    first, second = (f"{factor * row[side]:.{2 if factor == 1 else 1}f}"
                     for side in ("first", "second"))  # fmt: skip
    difference = with_interval(row, factor, signed=True)
    return first, second, difference, str(row["better"]), str(row["worse"])
