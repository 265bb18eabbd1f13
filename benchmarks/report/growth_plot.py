"""Small multiples of growth: time above, extra memory below, one column an axis."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from .rows import primary_of
from .tables import mebibytes, seconds
from .theme import Theme

AXES = {"rows": "rows N", "vocab": "vocabulary V", "hidden": "hidden size H"}
FIGURES = {
    "time": ("wall_s", "time", seconds),
    "extra_memory": ("extra_bytes_beyond_gradients", "extra memory", mebibytes),
}
PLAIN = "torch"
Points = list[tuple[float, float]]


def growth_figure(record: dict[str, Any], theme: Theme) -> Figure:
    """Log-log lines of ours and of plain torch, each with its slope at its end."""
    cases = record["cases"]
    axes_there = [axis for axis in AXES if any(c["shape"]["axis"] == axis for c in cases)]
    figure = Figure(figsize=(10.6, 5.6), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    grid = figure.subplots(len(FIGURES), len(axes_there), sharey="row", squeeze=False)
    ours = next((primary_of(case) for case in cases if primary_of(case)), None)
    styles = {ours: (theme.ours, "ours", "o"), PLAIN: (theme.best, "plain torch", "s")}
    for row, (figure_name, (key, title, text)) in zip(grid, FIGURES.items(), strict=True):
        for ax, axis in zip(row, axes_there, strict=True):
            points = [case for case in cases if case["shape"]["axis"] == axis]
            for side, (colour, label, marker) in styles.items():
                slope = record.get("slopes", {}).get(axis, {}).get(side, {}).get(figure_name)
                name = label if slope is None else f"{label}, slope {slope:.2f}".replace("-", "−")
                _line(ax, _points(points, side, axis, key), colour, name, marker)
            _frame(ax, axis, points, theme)
            ax.yaxis.set_major_formatter(lambda value, _, text=text: text(value))
            ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if _narrow(ax) else (1.0,)))
            ax.yaxis.set_minor_formatter(NullFormatter())
            if ax is row[0]:
                ax.set_ylabel(title)
            ax.legend(frameon=False, fontsize=8.5, labelcolor="linecolor", loc="upper left")
    for ax, axis in zip(grid[0], axes_there, strict=True):
        ax.set_title(_fixed(cases, axis), fontsize=9, fontweight="normal", color=theme.soft)
    return figure


def _narrow(ax: Axes) -> bool:
    """Whether powers of ten alone would leave an axis with hardly a number."""
    low, high = ax.get_ylim()
    return high / low < 100


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
