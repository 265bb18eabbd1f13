"""Writes ``report.html``: scores with their intervals, what failed and why, answers to hear."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wavalign_fast.errors import shorten
from wavalign_fast.evaluation.interval_chart import interval_chart
from wavalign_fast.evaluation.outcome import Result
from wavalign_fast.evaluation.prompts import RATED
from wavalign_fast.evaluation.results_file import read_results
from wavalign_fast.evaluation.scoring import FAILED, MISSING, SCORED
from wavalign_fast.evaluation.table import read_report, shown_value, with_interval
from wavalign_fast.report.audio import locate
from wavalign_fast.report.formatting import escape, percent, short
from wavalign_fast.report.frame import page, section
from wavalign_fast.report.frame import write_page as write_file
from wavalign_fast.report.samples import AUDIO_BUDGET, mark, player

PAGE_FILE = "report.html"
SHOWN = 4
"""Answers of a category that are shown."""
LONGEST = 600
"""Characters of a text that are shown."""
COLUMNS = (
    ("failed", "Failed", "answers that are empty, or prompts that could not be asked; they have "
     "the lowest score"),
    ("empty", "Empty", "those of them without text, or without speech where that is scored"),
    ("unparsable", "Unparsable", "answers in which no choice can be read; they are wrong"),
    ("missing", "Missing", "answers without a judgement; the score leaves them out"),
    ("unended", "Unended", "answers cut off at the greatest number of tokens"),
)  # fmt: skip
OTHERS = (
    ("n", "Prompts", "number of prompts"),
    ("score", "Score", "mean with its 95% bootstrap interval: shares in per cent, or 1 to 5"),
    ("length", "Length", "mean number of tokens in an answer"),
    ("words", "Words", "mean number of words in its text"),
    ("codes", "Codes", "mean number of its speech codes"),
    ("agreement", "Speech = text", "1 − word error rate of what a speech recogniser hears against "
     "the text, mean over answers with sound"),
)  # fmt: skip


def write_page(directory: Path) -> Path:
    """Writes the page about the evaluation in ``directory``, from its files.

    Raises:
        UserError: a file is missing or damaged, or the page cannot be written.
    """
    report, results = read_report(directory), read_results(directory)
    title = directory.resolve().name
    sections = [
        section("Notes", "notes", bullets(report["notes"])),
        section("Results", "results", _table(report["categories"])),
        section("Failed and missing", "causes", _causes(report["categories"])),
        section("Answers", "samples", _cards(results, directory)),
        section("How it was made", "provenance", _made(report)),
    ]
    text = page(
        kind="Evaluation",
        title=title,
        headline=headline(report),
        opening=_opening(report),
        sections=sections,
    )
    return write_file(directory / PAGE_FILE, text)


def headline(report: Mapping[str, Any]) -> str:
    """Returns the numbers that sum all up: IQ and EQ, or the scores of the first categories."""
    parts = [
        f"{name.upper()} {with_interval(numbers)}"
        for name in ("iq", "eq")
        if (numbers := report[name]) is not None and numbers["value"] is not None
    ]
    if not parts:
        parts = [
            f"{name} {shown_value(row['task'], row)}"
            for name, row in [*report["categories"].items()][:3]
        ]
    return ", ".join(parts)


def _opening(report: Mapping[str, Any]) -> str:
    rows = report["categories"]
    lacks = [
        f"<li>{name.upper()} needs {escape(', '.join(numbers['lacks']))} too.</li>"
        for name in ("iq", "eq")
        if (numbers := report[name]) is not None and numbers["lacks"]
    ]
    charts = "".join(
        interval_chart(
            {name: row for name, row in rows.items() if (row["task"] in RATED) == rated},
            rated=rated,
            beside=rows,
        )
        for rated in (False, True)
    )
    return (
        f'<div class="opening">\n<div>\n<p class="lead">{escape(_lead(rows))}</p>\n'
        f'<ul class="findings">{"".join(lacks)}</ul></div>\n'
        f'<div class="charts">{charts}</div>\n</div>'
    )


def _lead(rows: Mapping[str, Mapping[str, Any]]) -> str:
    total = sum(row["n"] for row in rows.values())
    counts = [
        (sum(row[key] for row in rows.values()), words)
        for key, words in (("failed", "failed"), ("unparsable", "cannot be read"),
                           ("missing", "not scored"), ("unended", "cut off"))
    ]  # fmt: skip
    said = ", ".join(f"{count} {words}" for count, words in counts if count)
    where = "one category" if len(rows) == 1 else f"{len(rows)} categories"
    return f"{total} prompts in {where}; of their answers {said or 'none failed'}."


def bullets(notes: Sequence[str]) -> str:
    """Returns a list of sentences; empty without any."""
    return f"<ul>{''.join(f'<li>{escape(note)}</li>' for note in notes)}</ul>" if notes else ""


def _table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    counted = [column for column in COLUMNS if any(row[column[0]] for row in rows.values())]
    heard = [column for column in OTHERS[2:] if _has(rows, column[0])]
    shown = [*OTHERS[:2], *counted, *heard]
    heads = "".join(
        f'<th scope="col" title="{escape(meaning)}">{escape(title)}</th>'
        for _, title, meaning in shown
    )
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        f"{''.join(_cell(row, key) for key, _, _ in shown)}</tr>{_languages(row, len(shown))}"
        for name, row in rows.items()
    )
    meanings = "".join(
        f"<div><dt>{escape(title)}</dt><dd>{escape(meaning)}</dd></div>"
        for _, title, meaning in shown
    )
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Result table"><table>'
        f'<thead><tr><th scope="col">Category</th>{heads}</tr></thead><tbody>{body}</tbody>'
        f"</table></div><dl class='columns'>{meanings}</dl>"
    )


def _languages(row: Mapping[str, Any], columns: int) -> str:
    """Returns a line for each language of a category, if there are several."""
    rest = "<td></td>" * (columns - 2)
    return "".join(
        f'<tr class="base"><th scope="row">{escape(name)}</th><td>{part["n"]}</td>'
        f"{_cell({**part, 'task': row['task']}, 'score')}{rest}</tr>"
        for name, part in row["languages"].items()
    )


def _has(rows: Mapping[str, Mapping[str, Any]], key: str) -> bool:
    if key == "agreement":
        return any(row[key]["n"] for row in rows.values())
    return any(row[key] for row in rows.values())


def _cell(row: Mapping[str, Any], key: str) -> str:
    if key in ("score", "agreement"):
        numbers = row if key == "score" else row[key]
        if numbers["value"] is None:
            return "<td>–</td>"
        rated = key == "score" and row["task"] in RATED
        value, interval = with_interval(numbers, 1 if rated else 100).split(" ", 1)
        return f"<td>{value}<small>{escape(interval.strip('()'))}</small></td>"
    value = row[key]
    if key in ("length", "words", "codes"):
        return f"<td>{short(value) if value is not None else '–'}</td>"
    if key == "n" or not value:
        return f"<td>{value or '–'}</td>"
    return f"<td>{value}<small>{percent(value / row['n'])}</small></td>"


def _causes(rows: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [
        f"<li><b>{escape(name)}</b>: {count} × {escape(cause)}</li>"
        for name, row in rows.items()
        for cause, count in row["causes"].items()
    ]
    return f'<ul class="findings">{"".join(lines)}</ul>' if lines else ""


def _cards(results: Sequence[Result], directory: Path) -> str:
    """Shows a few answers of each category, from the lowest score to the highest."""
    cards, spent, left_out = [], 0, 0
    for one in _picked(results):
        audio = sound_of(one, directory)
        size = len(audio or b"")
        if spent + size > AUDIO_BUDGET:
            left_out += 1
            audio = None
        else:
            spent += size
        cards.append(_card(one, audio))
    kept = f"; {left_out} sounds are left out to keep this page small" if left_out else ""
    note = (
        f"<p class='note'>Up to {SHOWN} answers of each category, from the lowest score to the "
        f"highest{kept}. All are in results.jsonl.</p>"
    )
    return f'{note}<div class="cards">{"".join(cards)}</div>'


def _picked(results: Sequence[Result]) -> list[Result]:
    groups: dict[str, list[Result]] = {}
    for one in results:
        groups.setdefault(one.category, []).append(one)
    picked = []
    for group in groups.values():
        # Stable: answers of one score stay in the order of the file.
        ordered = sorted(group, key=lambda one: -1.0 if one.score is None else one.score)
        count = min(SHOWN, len(ordered))
        places = [round(k * (len(ordered) - 1) / max(1, count - 1)) for k in range(count)]
        picked += [ordered[place] for place in places]
    return picked


def sound_of(one: Result, directory: Path) -> bytes | None:
    """Returns the bytes of the sound of an answer; ``None`` if it has none that can be played."""
    if one.wav is None:
        return None
    # The sound of a given answer lies where the user's file says, outside of the evaluation.
    whole = directory / one.wav
    path = locate(whole.parent, whole.name)
    return path.read_bytes() if isinstance(path, Path) else None


def _card(one: Result, audio: bytes | None) -> str:
    wanted = ""
    if one.references:
        right = shorten("; ".join(one.references), LONGEST)
        wanted = f"<p class='wanted'>right answer: {escape(right)}</p>"
    said = player(audio, f"{one.category}: {shorten(one.text, LONGEST)}") if one.wav else ""
    rows = [("wrote", escape(shorten(one.text, LONGEST)) or "<em>nothing</em>")]
    if one.heard is not None:
        rows.append(("heard", escape(shorten(one.heard, LONGEST)) or "<em>nothing</em>"))
    if one.read is not None:
        rows.append(("read as", escape(one.read)))
    rows.append(("score", verdict(one)))
    listed = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in rows)
    return (
        f'<article class="card"><h3>{escape(shorten(one.question, LONGEST))}</h3>{wanted}'
        f'<div class="answer"><h4>{escape(one.category)} <small>{escape(one.id)}</small></h4>'
        f"{said}<dl>{listed}</dl></div></article>"
    )


def verdict(one: Result) -> str:
    """Returns what an answer counts, as HTML."""
    if one.status == MISSING or one.score is None:
        return f"<em>missing: {escape(one.cause)}</em>"
    if one.status == FAILED:
        return mark(False, "", f"failed: {escape(one.cause)}")
    assert one.status == SCORED
    if one.task in RATED:
        return f"{short(one.score)} of 5"
    if one.unparsable:
        return mark(False, "", "wrong: no choice can be read")
    if one.task == "ifeval":
        return mark(one.score == 1, "all followed", f"{percent(one.score)} followed")
    return mark(one.score == 1, "right", "wrong")


def _made(report: Mapping[str, Any]) -> str:
    facts = [(str(name), str(value)) for name, value in report["about"].items()]
    for stage, settings in report["settings"].items():
        said = [f"{name} {json.dumps(value)}" for name, value in settings.items()
                if value is not None]  # fmt: skip
        facts.append((stage, ", ".join(said)))
    listed = "".join(f"<div><dt>{escape(a)}</dt><dd>{escape(b)}</dd></div>" for a, b in facts)
    return f'<dl class="facts">{listed}</dl>'
