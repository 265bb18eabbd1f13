"""Growth in small multiples: time above, extra memory below, a column for each axis."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from .rows import primary_of
from .theme import Theme

AXES = {"rows": "rows N", "vocab": "vocabulary V", "hidden": "hidden size H"}
FIGURES = {
    "time": ("wall_s", "time", 10, lambda value, _: _seconds(value)),
    # Powers of four meet 2^20.
    "extra_memory": (
        "extra_bytes_beyond_gradients",
        "extra memory",
        4,
        lambda value, _: f"{value / 2**20:g} MiB",
    ),
}
PLAIN, BUDGETED = "torch", "ours-budget"
Points = list[tuple[float, float]]


def growth_figure(record: dict[str, Any], theme: Theme) -> Figure:
    """Log-log lines of ours and of plain torch, with their slopes in each panel."""
    cases = record["cases"]
    axes_there = [axis for axis in AXES if any(c["shape"]["axis"] == axis for c in cases)]
    figure = Figure(figsize=(10.6, 6.0), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    grid = figure.subplots(len(FIGURES), len(axes_there), sharey="row", squeeze=False)
    ours = next((primary_of(case) for case in cases if primary_of(case)), None)
    styles = {PLAIN: (theme.best, "s"), ours: (theme.ours, "o"), BUDGETED: (theme.second, "^")}
    for row, (name, (key, title, base, text)) in zip(grid, FIGURES.items(), strict=True):
        for ax, axis in zip(row, axes_there, strict=True):
            points = [case for case in cases if case["shape"]["axis"] == axis]
            slopes = record.get("slopes", {}).get(axis, {})
            for place, (side, (colour, marker)) in enumerate(styles.items()):
                _line(ax, _points(points, side, axis, key), colour, _label(cases, side), marker)
                _slope(ax, place, slopes.get(side, {}).get(name), colour)
            _frame(ax, axis, points, theme)
        row[0].set_ylabel(title)
        low, high = row[0].get_ylim()
        row[0].set_ylim(low, high * (high / low) ** 0.3)  # room for the slopes
        subs = (1.0, 2.0, 5.0) if base == 10 and high / low < 100 else (1.0,)
        row[0].yaxis.set_major_locator(LogLocator(base=base, subs=subs))
        row[0].yaxis.set_major_formatter(text)
        row[0].yaxis.set_minor_formatter(NullFormatter())
    for ax, axis in zip(grid[0], axes_there, strict=True):
        ax.set_title(_fixed(cases, axis), fontsize=9, fontweight="normal", color=theme.soft)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper left", ncols=3, frameon=False, labelcolor="linecolor"
    )
    return figure


def _slope(ax: Axes, place: int, slope: float | None, colour: str) -> None:
    if slope is None:
        return
    text = f"slope {slope:.2f}".replace("-", "−")
    ax.text(
        0.03,
        0.95 - 0.085 * place,
        text,
        transform=ax.transAxes,
        color=colour,
        fontsize=8.5,
        bbox={"boxstyle": "square,pad=0.1", "facecolor": ax.get_facecolor(), "edgecolor": "none"},
    )


def _label(cases: Sequence[dict[str, Any]], side: str | None) -> str:
    return next((case["sides"][side]["label"] for case in cases if side in case["sides"]), "")


def _seconds(value: float) -> str:
    return f"{value:g} s" if value >= 1 else f"{value * 1e3:g} ms"


def _points(cases: Sequence[dict[str, Any]], side: str | None, axis: str, key: str) -> Points:
    found = [
        (float(case["shape"][axis]), float(case["sides"][side][key]))
        for case in cases
        if side in case["sides"] and case["sides"][side].get(key)
    ]
    return sorted(found)


def _line(ax: Axes, points: Points, colour: str, label: str, marker: str) -> None:
    if not points:
        return
    x, y = zip(*points, strict=True)
    ax.plot(x, y, color=colour, label=label, linewidth=2, marker=marker, markersize=5)


def _frame(ax: Axes, axis: str, cases: Sequence[dict[str, Any]], theme: Theme) -> None:
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    values = sorted({case["shape"][axis] for case in cases})
    ax.set_xticks(values, [_short(value) for value in values])
    ax.set_xlabel(AXES[axis])
    ax.margins(x=0.06, y=0.12)
    ax.grid(axis="y")
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", labelsize=9, labelcolor=theme.soft)


def _fixed(cases: Sequence[dict[str, Any]], axis: str) -> str:
    shape = next(case["shape"] for case in cases if case["shape"]["axis"] == axis)
    letters = {"rows": "N", "vocab": "V", "hidden": "H"}
    return "at " + ", ".join(f"{letters[a]} {shape[a]}" for a in AXES if a != axis)


def _short(value: int) -> str:
    return f"{value // 1024}k" if value >= 8192 else str(value)
