"""The page that says which test finds each planted fault."""

from collections.abc import Iterable
from itertools import groupby

from .catalogue import FAULTS
from .planting import ROOT, Fault, Outcome

PAGE = ROOT / "docs" / "planted_faults.md"
INTRODUCTION = """# Planted faults

`python -m tests.gpu.faults --save` plants each of these faults in a copy of the tree, runs the
tests of one rung of the ladder on it, and writes this page. Names of faults or of rungs limit it to
those. A fault is found if a test runs and fails. An earlier error, such as a compiler's, does not
count. Messages are cut after 120 characters.
"""
HEADER = """
| fault | what goes wrong | file | found by | which says |
|---|---|---|---|---|
"""
MISSED = "**not found**"


def beginning(fault: Fault) -> str:
    """The beginning of the fault's row, from the catalogue."""
    return f"| {fault.name} | {fault.what} | `{fault.path}` | "


def row(fault: Fault, result: Outcome) -> str:
    test = f"`{result.test.removeprefix('tests/')}`" if result.test else MISSED
    reason = result.reason.replace("|", "\\|").replace("`", "'").replace("<", "&lt;")
    return f"{beginning(fault)}{test.replace('|', chr(92) + '|')} | {reason} |"


def rows_of_page() -> dict[str, str]:
    """The rows that are on the page, by fault."""
    text = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    rows = [line for line in text.splitlines() if line.startswith("| ") and "`" in line]
    return {line.split(" | ")[0].removeprefix("| "): line for line in rows}


def page(rows: dict[str, str], faults: Iterable[Fault] = FAULTS) -> str:
    """The page: rows by rung, in the catalogue's order. A fault without a row was not found."""
    faults = list(faults)
    lines = {f.name: rows.get(f.name) or row(f, Outcome(test=None, reason="")) for f in faults}
    found = sum(MISSED not in line for line in lines.values())
    text = INTRODUCTION + f"\n{found} of {len(faults)} faults were found.\n"
    for rung, group in groupby(sorted(faults, key=_rung), key=lambda fault: fault.rung):
        text += f"\n## {rung}\n{HEADER}" + "".join(f"{lines[f.name]}\n" for f in group)
    return text


def _rung(fault: Fault) -> int:
    """The place of a fault's rung in the order in which the catalogue first names rungs."""
    return [other.rung for other in FAULTS].index(fault.rung)
