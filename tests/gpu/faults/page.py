"""The page that says which test finds each planted fault."""

from collections.abc import Iterable
from itertools import groupby

from .catalogue import FAULTS
from .planting import ROOT, Fault, Outcome

PAGE = ROOT / "docs" / "planted_faults.md"
INTRODUCTION = """# Planted faults

`python -m tests.gpu.faults --save` plants each of these faults in a copy of the tree, runs the
tests of one rung of the ladder on it, and writes this page; with names of faults or of rungs it
does so for those alone. A fault is found where a test runs and fails: an error before that, as of
a compiler, finds nothing. What the test said is cut after 120 characters.
"""
HEADER = """
| fault | what goes wrong | file | found by | which says |
|---|---|---|---|---|
"""
MISSED = "**not found**"


def beginning(fault: Fault) -> str:
    """Of the fault's row: what the catalogue says."""
    return f"| {fault.name} | {fault.what} | `{fault.path}` | "


def row(fault: Fault, result: Outcome) -> str:
    test = f"`{result.test.removeprefix('tests/')}`" if result.test else MISSED
    reason = result.reason.replace("|", "\\|").replace("`", "'").replace("<", "&lt;")
    return f"{beginning(fault)}{test.replace('|', chr(92) + '|')} | {reason} |"


def rows_of_page() -> dict[str, str]:
    """The rows that stand on the page, by fault."""
    text = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    rows = [line for line in text.splitlines() if line.startswith("| ") and "`" in line]
    return {line.split(" | ")[0].removeprefix("| "): line for line in rows}


def page(rows: dict[str, str], faults: Iterable[Fault] = FAULTS) -> str:
    """Rows by rung, in the catalogue's order; a fault without one was not found."""
    faults = list(faults)
    lines = {f.name: rows.get(f.name) or row(f, Outcome(test=None, reason="")) for f in faults}
    found = sum(MISSED not in line for line in lines.values())
    text = INTRODUCTION + f"\n{found} of {len(faults)} faults were found.\n"
    for rung, group in groupby(sorted(faults, key=_rung), key=lambda fault: fault.rung):
        text += f"\n## {rung}\n{HEADER}" + "".join(f"{lines[f.name]}\n" for f in group)
    return text


def _rung(fault: Fault) -> int:
    """Rungs in the order in which the catalogue names them first."""
    return [other.rung for other in FAULTS].index(fault.rung)
