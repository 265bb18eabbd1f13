"""Writes the result table and the split of the step time."""

from collections.abc import Sequence

from wavalign_fast.report.charts import STYLES
from wavalign_fast.report.figures import FIGURES, NOT_COLUMNS, PHASE_NAMES, Figure
from wavalign_fast.report.formatting import duration, escape, percent, short
from wavalign_fast.report.runs import Run
from wavalign_fast.report.statistics import wilson_interval


def swatch(index: int) -> str:
    """Draws the line style of arm ``index``, as in the charts."""
    return (
        '<svg class="swatch" viewBox="0 0 26 8" aria-hidden="true">'
        f'<path class="line s{index % STYLES}" d="M1 4H25"/></svg>'
    )


BASE_SWATCH = (
    '<svg class="swatch" viewBox="0 0 26 8" aria-hidden="true">'
    '<circle class="dot base" cx="13" cy="4" r="3"/></svg>'
)
"""The mark of the base model, as in the chart of the outcome."""


def legend(runs: Sequence[Run]) -> str:
    """Lists all arms with their line styles."""
    entries = [f"<li>{swatch(i)}{escape(run.name)}</li>" for i, run in enumerate(runs)]
    return f'<ul class="legend">{"".join(entries)}</ul>'


def columns(runs: Sequence[Run]) -> list[Figure]:
    """Returns the results that any arm or base has: known ones first, then others by name."""
    present = {name for run in runs for name in (*run.base, *run.final)} - NOT_COLUMNS
    known = [figure for figure in FIGURES if figure.key in present]
    others = sorted(present - {figure.key for figure in FIGURES})
    return known + [
        Figure(key=name, title=name, meaning="a figure of this recipe") for name in others
    ]


def evaluation_table(runs: Sequence[Run]) -> str:
    """Writes the table of all arms and their base; empty if nothing was evaluated."""
    shown = columns(runs)
    if not shown:
        return ""
    heads = "".join(
        f'<th scope="col" title="{escape(figure.meaning)}">{escape(figure.title)}</th>'
        for figure in shown
    )
    bests = {figure.key: _best(figure, runs) for figure in shown}
    rows = []
    base = next((run.base for run in runs if run.base), None)
    if base:
        cells = "".join(_cell(figure, base, best=False) for figure in shown)
        head = f'<th scope="row">{BASE_SWATCH}base</th>'
        rows.append(f'<tr class="base">{head}{cells}<td>–</td><td>–</td></tr>')
    for index, run in enumerate(runs):
        cells = "".join(
            _cell(figure, run.final, best=run.final.get(figure.key) == bests[figure.key])
            for figure in shown
        )
        time = duration(run.seconds) if run.seconds is not None else "–"
        rows.append(
            f'<tr><th scope="row">{swatch(index)}{escape(run.name)}</th>{cells}'
            f"<td>{run.steps}</td><td>{time}</td></tr>"
        )
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Result table"><table>'
        f'<thead><tr><th scope="col">Model</th>{heads}<th scope="col">Steps</th>'
        f'<th scope="col">Training</th></tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
        f"{_explanation(shown, runs)}"
    )


def _best(figure: Figure, runs: Sequence[Run]) -> float | None:
    """Returns the best final value, or ``None`` if the arms do not differ."""
    values = [run.final[figure.key] for run in runs if figure.key in run.final]
    if len(set(values)) < 2 or not figure.better:
        return None
    return max(values) if figure.better > 0 else min(values)


def _cell(figure: Figure, values: dict[str, float], *, best: bool) -> str:
    value = values.get(figure.key)
    if value is None:
        return "<td>–</td>"
    text = percent(value) if figure.share else short(value)
    shown = f"<b>{text}</b>" if best else text
    items = values.get("items")
    if not (figure.sampled and items):
        return f"<td>{shown}</td>"
    low, high = wilson_interval(value, items)
    return f"<td>{shown}<small>{100 * low:.0f}–{100 * high:.0f}</small></td>"


def _explanation(shown: Sequence[Figure], runs: Sequence[Run]) -> str:
    counts = sorted({int(v["items"]) for r in runs for v in (r.base, r.final) if v.get("items")})
    entries = "".join(
        f"<div><dt>{escape(figure.title)}</dt><dd>{escape(figure.meaning)}</dd></div>"
        for figure in shown
    )
    over = " or ".join(map(str, counts))
    note = (
        f"<p class='note'>Small figures: 95% binomial interval over {over} answers, taken as "
        "independent. Bold: the best arm; where intervals overlap, another seed may order them "
        "otherwise.</p>"
    )
    return f"{note if counts else ''}<dl class='columns'>{entries}</dl>"


def time_bars(runs: Sequence[Run]) -> str:
    """Draws the mean time per step and phase, one bar per arm; empty if nothing was timed."""
    splits = [(run, split) for run in runs if (split := run.phase_seconds())]
    if not splits:
        return ""
    longest = max(sum(split.values()) for _, split in splits)
    rows = "".join(_time_bar(run, split, longest) for run, split in splits)
    present = [phase for phase in PHASE_NAMES if any(phase in split for _, split in splits)]
    keys = "".join(
        f'<li><i class="phase p-{phase}"></i>{escape(PHASE_NAMES[phase])}</li>' for phase in present
    )
    return f'<div class="times">{rows}</div><ul class="legend">{keys}</ul>'


def _time_bar(run: Run, split: dict[str, float], longest: float) -> str:
    total = sum(split.values())
    parts = []
    for phase, seconds in split.items():
        share = seconds / total if total else 0.0
        width = 100 * seconds / longest if longest else 0.0
        label = f"{1000 * seconds:.0f} ms, {percent(share)}"
        # In a narrower part of the bar the number does not fit, even on a wide page.
        inside = f"<span>{1000 * seconds:.0f}</span>" if width > 6 else ""
        parts.append(
            f'<i class="phase p-{phase}" style="width:{width:.2f}%" '
            f'title="{escape(PHASE_NAMES[phase])}: {label}">{inside}</i>'
        )
    listed = ", ".join(f"{PHASE_NAMES[p]} {1000 * s:.0f}" for p, s in split.items())
    note = f"{1000 * total:.0f} ms per step: {listed}"
    return (
        f"<div><p>{escape(run.name)} <small>{escape(note)}</small></p>"
        f'<div class="bar" aria-hidden="true">{"".join(parts)}</div></div>'
    )
