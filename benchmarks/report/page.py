"""One self-contained page of all measurements; nothing on it is fetched."""

import html
from collections.abc import Iterable, Iterator
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from string import Template
from typing import Any

from wavalign_fast.outputs import write_whole

from .adversarial import adversarial_section
from .grpo import grpo_html
from .notes import why
from .plots import (
    NoMatplotlibError,
    Records,
    cases_of,
    compared_cases,
    data_uri,
    figures,
    slope_rows,
)
from .provenance import uncommitted_note, where_measured
from .recipe import recipe_html
from .rows import Place, Standing, places, rows_of, standings
from .tables import (
    caption,
    distribution_line,
    html_note,
    html_table,
    machine_line,
    rates_line,
    verdict,
)
from .theme import PAGE_DARK, PAGE_LIGHT

TITLES = {
    "linear_logprob": "Log-probabilities under a large head",
    "hybrid_loss": "The hybrid step",
    "dpo": "Preference loss",
    "skip": "Modality-aware skipping",
}
METHOD = (
    "Before anything is timed, the values and gradients of every side are checked against float64 "
    "on the same operands. Then all sides run in one process, in alternating order. A time is the "
    "median of forward and backward together, and a ratio is the median over rounds. CPU time "
    "counts all threads. Extra memory is the peak beyond operands and gradients. “Of the GEMM "
    "rate” is the time of torch's own three GEMMs (logits, dH, dW) on the rows that carry loss, in "
    "the same run, divided by the side's time. The best figure of a column is underlined. “Level” "
    "means times with overlapping quartile ranges, memory within 5 %, or errors within a factor of "
    "two, which the order of a summation can cause."
)


def write_page(records: Records, path: Path) -> Path:
    """Writes the page of these records; without matplotlib it has no plots and says so."""
    write_whole(path, render(records).encode())
    return path


def render(records: Records) -> str:
    """The whole page as text."""
    cases = compared_cases(records)
    plots, missing = _plots(records)
    sections = {title: content for title, content in _sections(records, plots) if content}
    style = files("wavalign_fast.report").joinpath("style.css").read_text(encoding="utf-8")
    template = Template(_asset("page.html"))
    return template.substitute(
        style=style + _asset("page.css"),
        where=html.escape(where_measured(records)),
        headline=html.escape(_headline(cases)),
        lead=html.escape(_lead(records)),
        standing=_standing(standings(cases)),
        uncommitted=html_note(uncommitted_note(records)),
        contents=_contents(sections),
        sections="".join(_section(title, content) for title, content in sections.items()),
        footer=html.escape(missing),
    )


def _sections(records: Records, plots: dict[str, str]) -> Iterator[tuple[str, str]]:
    """(title, content) in the order of the page; the content is "" where nothing was measured."""
    yield "Overview", plots.get("overview", "")
    for name, title in TITLES.items():
        yield title, _benchmark(cases_of(records, name), plots.get(name, ""))
    yield "Growth", plots.get("growth", "") + _slopes(records)
    grpo = records.get("grpo")
    yield "A step of GRPO", grpo_html(grpo) if grpo else ""
    adversarial, recipe = records.get("adversarial"), records.get("spoken_sums")
    yield "Who fails what", adversarial_section(adversarial) if adversarial else ""
    yield "The recipe spoken-sums", recipe_html(recipe) if recipe else ""
    yield "How it is measured", html_note(METHOD) + _what_runs(compared_cases(records))


def _asset(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _contents(sections: Iterable[str]) -> str:
    """A link to each section."""
    return "".join(
        f'<li><a href="#{_anchor(title)}">{html.escape(title)}</a></li>' for title in sections
    )


def _section(title: str, content: str) -> str:
    return f'<section id="{_anchor(title)}"><h2>{html.escape(title)}</h2>{content}</section>'


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def _plots(records: Records) -> tuple[dict[str, str], str]:
    """name -> picture, and the reason where no picture can be drawn."""
    try:
        drawn = figures(records)
    except NoMatplotlibError as error:
        return {}, f"No plots: {error}."
    return {
        name: '<picture><source media="(prefers-color-scheme: dark)" '
        f'srcset="{data_uri(draw, PAGE_DARK)}">'
        f'<img alt="Plot: {html.escape(name)}" src="{data_uri(draw, PAGE_LIGHT)}"></picture>'
        for name, draw in drawn.items()
    }, ""


def _headline(cases: list[dict[str, Any]]) -> str:
    time = next((s for s in standings(cases) if s.metric.key == "time"), None)
    if time is None:
        return "Measurements without a rival"
    if time.first == time.cases:
        return f"First in time in all {time.cases} comparisons"
    level = f", level in {time.level}" if time.level else ""
    behind = f", behind in {time.behind}" if time.behind else ""
    return f"First in time in {time.first} of {time.cases} comparisons{level}{behind}"


def _lead(records: Records) -> str:
    """The machines, each once; the commit is named beside each table."""
    cases = compared_cases(records)
    machines = {
        machine_line(case | {"machine": case["machine"] | {"commit": ""}}) for case in cases
    }
    return "; ".join(sorted(machines)) or "Nothing was compared."


def _standing(found: list[Standing]) -> str:
    items = "".join(
        f"<li><b>{html.escape(s.metric.title)}</b>: first in {s.first}, level in {s.level}, behind "
        f"in {s.behind} of {s.cases}</li>"
        for s in found
    )
    return f'<ul class="findings">{items}</ul>' if items else ""


def _benchmark(cases: list[dict[str, Any]], plot: str) -> str:
    """The plot, the tables of the first shape, and those of the other shapes folded."""
    parts = [plot]
    grouped = groupby(cases, key=lambda case: (case["shape"]["name"], case["device"]))
    for index, (_, group) in enumerate(grouped):
        same = list(group)
        tables = "".join(_case(case) for case in same)
        facts = [f"Source of the shape: {same[0]['shape']['source']}."]
        facts += [f"Measured: {line}." for line in sorted({machine_line(case) for case in same})]
        source = html_note(" ".join(facts))
        if index == 0:
            parts.append(tables + source)
            continue
        head = caption(same[0]).rsplit(", ", 2)[0]
        summary = f"<summary>{html.escape(head)}: {html.escape(_short(same))}</summary>"
        parts.append(f"<details>{summary}{tables}{source}</details>")
    return "".join(parts)


def _case(case: dict[str, Any]) -> str:
    facts = " ".join(line for line in (distribution_line(case), rates_line(case)) if line)
    items = "".join(f"<li>{_verdict(place, case)}</li>" for place in places(case))
    return f'{html_table(case)}<ul class="verdicts">{items}</ul>{html_note(facts)}'


def _verdict(place: Place, case: dict[str, Any]) -> str:
    kind = "even" if place.level else "ahead" if place.first else "behind"
    text = f'<span class="{kind}">{html.escape(verdict(place))}</span>'
    return f"{text}. Why: {html.escape(why(place, case))}." if kind == "behind" else text


def _short(cases: list[dict[str, Any]]) -> str:
    parts = [f"{s.metric.title} first in {s.first} of {s.cases}" for s in standings(cases)]
    return ", ".join(parts) or "no rival"


def _slopes(records: Records) -> str:
    lines = [
        f'<tr class="{"ours" if name.startswith("ours") else "rival"}">'
        f'<th scope="row">{html.escape(axis)}: {html.escape(label)}</th>'
        f"<td>{figures['time']:.2f}</td><td>{_slope(figures.get('extra_memory'))}</td></tr>"
        for axis, name, label, figures in slope_rows(records)
    ]
    if not lines:
        return ""
    return (
        '<div class="scroll"><table><caption><span>Slopes in the log-log plot: 1 is linear, 0 is '
        "flat</span></caption><thead><tr><th>axis and side</th><th>time</th><th>extra memory</th>"
        f"</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _what_runs(cases: list[dict[str, Any]]) -> str:
    """The implementation of each library that ran: on a CPU seldom the one it is known for."""
    ran = {row.label: row.runs for case in cases for row in rows_of(case) if row.runs and row.wall}
    entries = "".join(
        f"<div><dt>{html.escape(label)}</dt><dd>{html.escape(runs or '')}</dd></div>"
        for label, runs in ran.items()
    )
    return f'<dl class="columns">{entries}</dl>' if entries else ""


def _slope(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}".replace("-", "−")
