"""Writes the page that compares two evaluations."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wavalign_fast.errors import shorten
from wavalign_fast.evaluation.comparison import Pair, pairs_of
from wavalign_fast.evaluation.interval_chart import interval_chart
from wavalign_fast.evaluation.page import LONGEST, PAGE_FILE, bullets, sound_of, verdict
from wavalign_fast.evaluation.prompts import RATED
from wavalign_fast.evaluation.table import comparison_cells, with_interval
from wavalign_fast.report.formatting import escape
from wavalign_fast.report.frame import page, section, write_page
from wavalign_fast.report.samples import AUDIO_BUDGET, player

SHOWN = 3
"""Answers of a category that are shown on either side of the difference."""


def write_comparison_page(directory: Path, found: Mapping[str, Any]) -> Path:
    """Writes ``report.html`` about what ``compare`` found."""
    runs = [Path(found["first"]), Path(found["second"])]
    names = [run.resolve().name for run in runs]
    text = page(
        kind="Comparison",
        title=f"{names[1]} against {names[0]}",
        headline=headline(found),
        opening=_opening(found, names),
        sections=[
            section("Made with other settings", "notes", bullets(found["settings"])),
            section("Results", "results", _table(found, names)),
            section("Where they differ most", "samples", _cards(pairs_of(*runs), runs, names)),
        ],
    )
    return write_page(directory / PAGE_FILE, text)


def headline(found: Mapping[str, Any]) -> str:
    """Returns the differences of IQ and EQ, or those of the first categories."""
    parts = [
        f"{name.upper()} {with_interval(found[name], signed=True)}"
        for name in ("iq", "eq")
        if found[name] is not None
    ]
    if not parts:
        parts = [
            f"{name} {comparison_cells(row)[2]}" for name, row in [*found["categories"].items()][:3]
        ]
    return ", ".join(parts)


def _opening(found: Mapping[str, Any], names: Sequence[str]) -> str:
    rows = found["categories"]
    total = sum(row["n"] for row in rows.values())
    clear = [name for name, row in rows.items() if row["value"] is not None
             and (row["low"] > 0 or row["high"] < 0)]  # fmt: skip
    said = f"{total} prompts that both have answered, {names[1]} − {names[0]}."
    verdict_line = f"Intervals without 0: {', '.join(clear) or 'none'}."
    alone = [
        f"<li>Prompts that are in {escape(name)} alone: {found[key]}.</li>"
        for key, name in zip(("only_in_first", "only_in_second"), names, strict=True)
        if found[key]
    ]
    charts = "".join(_chart(rows, rated=rated) for rated in (False, True))
    return (
        f'<div class="opening">\n<div>\n<p class="lead">{escape(said)} {escape(verdict_line)}</p>\n'
        f'<ul class="findings">{"".join(alone)}</ul></div>\n'
        f'<div class="charts">{charts}</div>\n</div>'
    )


def _chart(rows: Mapping[str, Mapping[str, Any]], *, rated: bool) -> str:
    drawn = {name: row for name, row in rows.items()
             if (row["task"] in RATED) == rated and row["value"] is not None}  # fmt: skip
    if not drawn:
        return ""
    ends = [abs(row[end]) for row in drawn.values() for end in ("low", "high")]
    widest = max(*ends, 0.2 if rated else 0.05) * 1.05
    caption = "Difference, points of 1 to 5" if rated else "Difference, percentage points"
    return interval_chart(
        drawn, rated=rated, bounds=(-widest, widest), caption=caption, beside=rows
    )


def _table(found: Mapping[str, Any], names: Sequence[str]) -> str:
    titles = ("Prompts", *names, "Difference", "Better", "Worse", "Unscored")
    heads = "".join(f'<th scope="col">{escape(title)}</th>' for title in titles)
    body = ""
    for name, row in found["categories"].items():
        first, second, difference, better, worse = comparison_cells(row)
        value, _, interval = difference.partition(" ")
        cells = [str(row["n"]), first, second,
                 f"{value}<small>{escape(interval.strip('()'))}</small>", better, worse,
                 str(row["unscored"] or "–")]  # fmt: skip
        body += f'<tr><th scope="row">{escape(name)}</th>'
        body += "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
    note = (
        "<p class='note'>Mean differences by prompt with 95% bootstrap intervals over prompts. "
        "Better and worse: answers with a higher or a lower score. Unscored: a judgement of one "
        "of the two is missing.</p>"
    )
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Result table"><table>'
        f'<thead><tr><th scope="col">Category</th>{heads}</tr></thead><tbody>{body}</tbody>'
        f"</table></div>{note}"
    )


def _cards(pairs: Sequence[Pair], runs: Sequence[Path], names: Sequence[str]) -> str:
    cards, spent = [], 0
    for pair in _picked(pairs):
        sounds = [sound_of(one, run) for one, run in zip(pair, runs, strict=True)]
        size = sum(len(sound or b"") for sound in sounds)
        if spent + size > AUDIO_BUDGET:
            sounds = [None, None]
        else:
            spent += size
        answers = ""
        for one, sound, name in zip(pair, sounds, names, strict=True):
            said = player(sound, f"{name}: {shorten(one.text, LONGEST)}") if one.wav else ""
            answers += (
                f'<div class="answer"><h4>{escape(name)}</h4>{said}<dl><dt>wrote</dt><dd>'
                f"{escape(shorten(one.text, LONGEST)) or '<em>nothing</em>'}</dd>"
                f"<dt>score</dt><dd>{verdict(one)}</dd></dl></div>"
            )
        question = escape(shorten(pair[0].question, LONGEST))
        cards.append(
            f'<article class="card"><h3>{question}</h3>'
            f"<p class='wanted'>{escape(pair[0].category)}</p>{answers}</article>"
        )
    return f'<div class="cards">{"".join(cards)}</div>' if cards else ""


def _picked(pairs: Sequence[Pair]) -> list[Pair]:
    """Returns the pairs whose scores differ most, in either direction, category by category."""
    groups: dict[str, list[tuple[float, Pair]]] = {}
    for one, other in pairs:
        if one.score is not None and other.score is not None and one.score != other.score:
            groups.setdefault(one.category, []).append((other.score - one.score, (one, other)))
    picked = []
    for group in groups.values():
        ordered = sorted(group, key=lambda item: -item[0])
        best = [pair for change, pair in ordered[:SHOWN] if change > 0]
        worst = [pair for change, pair in ordered[::-1][:SHOWN] if change < 0]
        picked += [*best, *worst]
    return picked
