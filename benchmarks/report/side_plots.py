"""Dot plots: all sides of a case in time, memory and error, and all cases in one overview."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .rows import Row, error_name, rows_of
from .tables import ERROR_HEADS, caption, mebibytes, scientific, seconds
from .theme import Theme

Format = Callable[[float | None], str]
BOUND_LABEL = "three products alone"


def sides_figure(cases: Sequence[dict[str, Any]], theme: Theme) -> Figure:
    """A row of panels for each case: time, extra memory and error of every side."""
    timed = [[row for row in rows_of(case) if row.wall is not None] for case in cases]
    heights = [0.27 * len(rows) + 0.85 for rows in timed]
    figure = Figure(figsize=(10.6, sum(heights) + 0.2), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08, hspace=0.04)
    parts = figure.subfigures(len(cases), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, case, rows in zip(parts, cases, timed, strict=True):
        part.set_facecolor(theme.paper)
        part.suptitle(caption(case), x=0.008, ha="left", fontsize=10.5, fontweight="bold")
        _case_panels(part, case, rows, theme)
    return figure


def _case_panels(part: Any, case: dict[str, Any], rows: Sequence[Row], theme: Theme) -> None:
    shown = [row for row in rows if not row.bound]
    shown.sort(key=lambda row: -(row.wall or 0.0))
    panels: list[tuple[str, Callable[[Row], float | None], Format]] = [
        ("time, log scale", lambda row: row.wall, seconds),
        ("extra memory", lambda row: row.extra, mebibytes),
        (ERROR_HEADS[error_name(case)] + " against float64", lambda row: row.error, scientific),
    ]
    panels = [panel for panel in panels if any(panel[1](row) for row in shown)]
    axes = part.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    bound = next((row.wall for row in rows if row.bound), None)
    for ax, (title, figure_of, text) in zip(axes, panels, strict=True):
        also = bound if ax is axes[0] else None
        _dots(ax, shown, figure_of, text, theme, also)
        ax.set_title(title, fontsize=9, fontweight="normal", color=theme.soft)
    if bound:
        axes[0].axvline(bound, color=theme.ink, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axes[0].annotate(
            f"{BOUND_LABEL} {seconds(bound)}",
            (bound, -0.9),
            xytext=(4, 0),
            textcoords="offset points",
            fontsize=8,
            color=theme.soft,
            va="center",
        )
    axes[0].set_yticks(range(len(shown)), [row.label for row in shown])
    for tick, row in zip(axes[0].get_yticklabels(), shown, strict=True):
        tick.set_color(theme.ours if row.ours else theme.ink)
        tick.set_fontweight("bold" if row.primary else "normal")


def _dots(
    ax: Axes,
    rows: Sequence[Row],
    figure_of: Callable[[Row], float | None],
    text: Format,
    theme: Theme,
    also: float | None,
) -> None:
    """One panel; ``also`` is a further value that must be in view."""
    values = [figure_of(row) for row in rows]
    measured = [value for value in (*values, also) if value]
    low, high = min(measured), max(measured)
    ax.set_xscale("log")
    # Room at the right for the last label.
    span = max(high / low, 3.0)
    ax.set_xlim(low / span**0.12, high * span**0.42)
    ax.set_ylim(-1.3, len(rows) - 0.4)
    for y, (row, value) in enumerate(zip(rows, values, strict=True)):
        ax.axhline(y, color=theme.rule, linewidth=0.8, zorder=0)
        if not value:
            # Zero has no place on a log scale.
            label = "" if value is None else "0"
            ax.text(0.01, y, label, transform=ax.get_yaxis_transform(), va="center", fontsize=9)
            continue
        colour = theme.ours if row.ours else theme.rival
        ax.plot([value], [y], "o", color=colour, markersize=7 if row.primary else 6, zorder=3)
        ax.annotate(
            text(value),
            (value, y),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=colour if row.ours else theme.ink,
            fontweight="bold" if row.primary else "normal",
            bbox={"boxstyle": "square,pad=0.1", "facecolor": theme.paper, "edgecolor": "none"},
            zorder=2,
        )
    ax.xaxis.set_visible(False)
    for spine in ax.spines.values():
        spine.set_visible(False)


def overview_figure(cases: Sequence[dict[str, Any]], theme: Theme) -> Figure:
    """A line for each case: every rival is a dot at its time over ours; the best one is named."""
    lines = []
    for case in cases:
        rows = [row for row in rows_of(case) if row.ratio and row.wall is not None]
        if any(row.ours for row in rows):
            lines.append((caption(case), rows))
    lines.reverse()
    figure = Figure(figsize=(10.6, 0.34 * len(lines) + 1.1), layout="constrained")
    ax = figure.subplots()
    ratios = [row.ratio or 1.0 for _, rows in lines for row in rows]
    ax.set_xscale("log")
    ax.set_xlim(min(0.62, min(ratios) / 1.15), max(ratios) * 1.5)
    ax.set_ylim(-0.8, len(lines) - 0.3)
    for y, (_, rows) in enumerate(lines):
        ax.axhline(y, color=theme.rule, linewidth=0.8, zorder=0)
        _overview_line(ax, y, rows, theme)
    ax.axvline(1.0, color=theme.ours, linewidth=1.6, zorder=1)
    ax.set_yticks(range(len(lines)), [label for label, _ in lines], fontsize=8.5)
    ticks = [t for t in (0.25, 0.5, 1, 2, 5, 10, 20, 50, 100) if ax.get_xlim()[0] <= t]
    ticks = [t for t in ticks if t <= ax.get_xlim()[1]]
    ax.set_xticks(ticks, [f"{t:g}×" for t in ticks])
    ax.minorticks_off()
    ax.set_xlabel("time over ours, log scale; right of the line: slower than ours", loc="left")
    _legend(ax, theme)
    for spine in ax.spines.values():
        spine.set_visible(False)
    return figure


def _legend(ax: Axes, theme: Theme) -> None:
    handles = [
        Line2D([], [], linestyle="", marker=marker, markersize=size, color=colour, label=label)
        for marker, size, colour, label in (
            ("o", 7, theme.ours, "wavalign_fast"),
            ("o", 6, theme.best, "fastest rival"),
            ("o", 5, theme.rival, "other rivals"),
            ("|", 11, theme.ink, BOUND_LABEL),
        )
    ]
    place = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.0), "ncols": len(handles)}
    ax.legend(handles=handles, frameon=False, fontsize=8.5, handletextpad=0.2, **place)


def _overview_line(ax: Axes, y: int, rows: Sequence[Row], theme: Theme) -> None:
    bounds = [row.ratio for row in rows if row.bound and row.ratio]
    rivals = [(row.ratio or math.inf, row.label) for row in rows if not row.bound and not row.ours]
    ax.plot([1.0], [y], "o", color=theme.ours, markersize=7, zorder=4)
    if bounds:
        ax.plot(bounds, [y], "|", color=theme.ink, markersize=11, markeredgewidth=1.4, zorder=3)
    if not rivals:
        return
    best, label = min(rivals)
    others = [ratio for ratio, _ in rivals if ratio != best]
    ax.plot(others, [y] * len(others), "o", color=theme.rival, markersize=5, alpha=0.8, zorder=2)
    ax.plot([best], [y], "o", color=theme.best, markersize=6, zorder=3)
    low, high = (math.log(limit) for limit in ax.get_xlim())
    far = math.log(best) > low + 0.6 * (high - low)  # a label at its right would leave the plot
    ax.annotate(
        f"{best:.2f}× {label}",
        (max(best, 1.0), y),
        xytext=(-7 if far else 7, 6),
        textcoords="offset points",
        fontsize=7.5,
        color=theme.best,
        va="center",
        ha="right" if far else "left",
    )
