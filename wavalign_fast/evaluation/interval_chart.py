"""Draws scores of categories with their intervals, one line each."""

from collections.abc import Iterable, Mapping
from typing import Any

from wavalign_fast.report.formatting import escape, tick_labels
from wavalign_fast.report.statistics import ticks

WIDTH, ROW, TOP, BOTTOM, RIGHT = 480, 26, 6, 22, 14
LETTER = 7.4
"""Width of a letter of a name, about; names are set at 12 px."""
LONGEST = 22
"""Letters of a name that are shown."""


def interval_chart(
    rows: Mapping[str, Mapping[str, Any]],
    *,
    rated: bool,
    bounds: tuple[float, float] | None = None,
    caption: str | None = None,
    beside: Iterable[str] = (),
) -> str:
    """Returns a figure of the rows that have a value; empty if none has.

    Args:
        rows: by name: ``value``, ``low`` and ``high``.
        rated: whether the scores are 1 to 5, and not shares.
        bounds: of the axis; by default those of the scale.
        caption: what the axis is; by default the scale's name.
        beside: names in charts above or below, for axes that begin at the same place.
    """
    drawn = {name: row for name, row in rows.items() if row["value"] is not None}
    if not drawn:
        return ""
    low, high = bounds or ((1.0, 5.0) if rated else (0.0, 1.0))
    left = LETTER * max(min(LONGEST, len(name)) for name in (*drawn, *beside)) + 14
    height = TOP + ROW * len(drawn) + BOTTOM

    def place(value: float) -> float:
        share = (value - low) / (high - low)
        return left + (WIDTH - left - RIGHT) * min(1.0, max(0.0, share))

    factor = 1 if rated else 100
    lines = ticks(low, high, 5)
    grid = "".join(
        f'<path class="{_kind(value, low)}" d="M{place(value):.1f} {TOP}V{height - BOTTOM}"/>'
        f'<text x="{place(value):.1f}" y="{height - 6}" text-anchor="middle">{label}</text>'
        for value, label in zip(lines, tick_labels([factor * line for line in lines]), strict=True)
    )
    marks = "".join(
        _mark(name, row, place, TOP + ROW * (line + 0.5), left)
        for line, (name, row) in enumerate(drawn.items())
    )
    said = "; ".join(f"{name} {factor * row['value']:.3g}" for name, row in drawn.items())
    title = caption or ("Score, 1 to 5" if rated else "Right, per cent")
    return (
        f'<figure class="chart"><figcaption>{escape(title)} <small>bars: 95% intervals</small>'
        f'</figcaption><svg viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(said)}">{grid}{marks}</svg></figure>'
    )


def _kind(value: float, low: float) -> str:
    """Returns the class of a line of the grid; that of no difference stands out."""
    return "cursor" if value == 0 > low else "grid"


def _mark(name: str, row: Mapping[str, Any], place: Any, y: float, left: float) -> str:
    shown = name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
    return (
        f'<text class="axis" x="{left - 8:.1f}" y="{y + 4:.1f}" text-anchor="end">'
        f"{escape(shown)}</text>"
        f'<path class="bar s0" d="M{place(row["low"]):.1f} {y:.1f}H{place(row["high"]):.1f}"/>'
        f'<circle class="dot s0" cx="{place(row["value"]):.1f}" cy="{y:.1f}" r="5"/>'
    )
