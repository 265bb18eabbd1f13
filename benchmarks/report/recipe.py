"""The recipe's arms over several seeds, as a table of docs/spoken_sums.md and of the page."""

import html
import statistics
from typing import Any

from ..commit import commit_text
from .tables import html_note

FIGURES = {
    "text_accuracy": "text right",
    "text_accuracy_greedy": "text right, greedy",
    "speech_matches_text": "speech = own text",
    "speech_says_sum": "speech right",
    "speech_ce": "speech CE",
    "text_ce": "text CE",
    "ended": "ends",
}


def recipe_markdown(record: dict[str, Any]) -> str:
    """The table, and where it was measured."""
    heads = ["arm", *FIGURES.values(), "training"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for arm, cells in _rows(record):
        label = arm if arm == "base" else f"`{arm}`"
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", recipe_note(record)])


def recipe_html(record: dict[str, Any]) -> str:
    """The same as HTML."""
    heads = "".join(f'<th scope="col">{head}</th>' for head in (*FIGURES.values(), "training"))
    body = "".join(
        f'<tr class="rival"><th scope="row">{html.escape(arm)}</th>'
        f"{''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)}</tr>"
        for arm, cells in _rows(record)
    )
    return (
        f'<div class="scroll"><table><thead><tr><th scope="col">arm</th>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>{html_note(recipe_note(record))}"
    )


def recipe_note(record: dict[str, Any]) -> str:
    """How the answers were drawn, and where and when."""
    items, machine = record["base"]["items"]["mean"], record["machine"]
    jobs = f", {record['jobs']} at a time" if "jobs" in record else ""
    facts = [commit_text(machine.get("commit")), f"{machine['date']}"]
    return (
        f"{len(record['seeds'])} seeds, mean ± standard deviation. Each run: {items:.0f} held-out "
        "spoken answers, sampled at T = 1. “Greedy” takes the most likely token, for each held-out "
        "sum once. CE is the cross-entropy in nats per token on right demonstrations. One "
        f"thread per run{jobs}, on {machine['cores']} shared cores, "
        f"{', '.join(fact for fact in facts if fact)}."
    )


def _rows(record: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """(arm, its cells), the base first; the cell of an unmeasured figure is empty."""
    rows = []
    for arm, figures in ({"base": record["base"]} | record["arms"]).items():
        cells = [_cell(figures.get(name), spread=arm != "base") for name in FIGURES]
        seconds = figures.get("seconds")
        cells.append(f"{statistics.mean(seconds['values']):.0f} s" if seconds else "")
        rows.append((arm, cells))
    return rows


def _cell(figure: dict[str, Any] | None, *, spread: bool) -> str:
    if figure is None:
        return ""
    return f"{figure['mean']:.3f}" + (f" ± {figure['std']:.3f}" if spread else "")
