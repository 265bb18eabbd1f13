"""Who fails what: the outcomes of the adversarial suite as a table."""

import html
from collections import Counter
from typing import Any

from .tables import machine_line

SIGNS = {"pass": "✓", "fail": "✗", "unsupported": "–", "crash": "crash", "timeout": "time"}
MEANINGS = {
    "pass": "passes",
    "fail": "wrong result",
    "unsupported": "has no such function, or refuses the input",
    "crash": "the process crashes",
    "timeout": "exceeds the time limit",
}
BAD = ("fail", "crash", "timeout")


def failures(record: dict[str, Any]) -> dict[str, Counter[str]]:
    """provider -> number of cases with each status."""
    return {
        name: Counter(
            case["outcomes"][name]["status"] for case in record["cases"] if name in case["outcomes"]
        )
        for name in record["providers"]
    }


def adversarial_section(record: dict[str, Any]) -> str:
    """The table of all cases and providers, with the failures counted at its foot."""
    names = list(record["providers"])
    heads = "".join(
        f'<th scope="col" class="vertical"><span>{html.escape(record["providers"][name]["label"])}'
        "</span></th>"
        for name in names
    )
    body = "".join(_line(case, names) for case in record["cases"])
    counts = failures(record)
    foot = "".join(
        f"<td>{sum(counts[name][status] for status in BAD)} of "
        f"{sum(counts[name].values()) - counts[name]['unsupported']}</td>"
        for name in names
    )
    return (
        f"{_key(record)}"
        '<div class="scroll"><table class="marks"><thead><tr><th scope="col">case</th>'
        f'{heads}</tr></thead><tbody>{body}</tbody><tfoot><tr><th scope="row">failed, of those '
        f"supported</th>{foot}</tr></tfoot></table></div>{_left_out(record)}"
    )


def _line(case: dict[str, Any], names: list[str]) -> str:
    cells = []
    for name in names:
        outcome = case["outcomes"].get(name)
        if outcome is None:
            cells.append("<td></td>")
            continue
        status = outcome["status"]
        title = f"{MEANINGS.get(status, status)}. {outcome.get('detail') or ''}".strip()
        cells.append(
            f'<td class="mark {html.escape(status)}" title="{html.escape(title, quote=True)}">'
            f"{html.escape(SIGNS.get(status, status))}</td>"
        )
    items = ", ".join(str(item) for item in case.get("items", []))
    note = " ".join(part for part in (f"item {items}." if items else "", case["source"]) if part)
    return (
        f'<tr><th scope="row">{html.escape(case["title"])}<small>{html.escape(note)}</small></th>'
        f"{''.join(cells)}</tr>"
    )


def _key(record: dict[str, Any]) -> str:
    seen = {outcome["status"] for case in record["cases"] for outcome in case["outcomes"].values()}
    entries = "; ".join(
        f"<b>{html.escape(SIGNS[status])}</b> {html.escape(MEANINGS[status])}"
        for status in SIGNS
        if status in seen
    )
    return (
        f'<p class="note">{entries}. Hover over a mark for the details. Run on '
        f"{html.escape(machine_line(record))}.</p>"
    )


def _left_out(record: dict[str, Any]) -> str:
    entries = "".join(
        f"<li>{html.escape(str(entry['item']))}. {html.escape(entry['title'])}: "
        f"{html.escape(entry['reason'])}</li>"
        for entry in record.get("not_applicable", [])
    )
    if not entries:
        return ""
    return f"<details><summary>Reports without a case</summary><ul>{entries}</ul></details>"
