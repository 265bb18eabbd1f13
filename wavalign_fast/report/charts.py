"""Draws line charts of the training metrics as inline SVG; the style sheet sets the colours."""

import json
from collections.abc import Collection, Sequence
from dataclasses import replace

from wavalign_fast.report.figures import CURVES, PARTS, Curve
from wavalign_fast.report.formatting import escape, short, tick_labels
from wavalign_fast.report.provenance import reward_scale
from wavalign_fast.report.runs import Run
from wavalign_fast.report.statistics import quantile, smooth, ticks

WIDTH, HEIGHT = 380, 210
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 34
STYLES = 7
"""Number of line styles (colour and dash) in the style sheet."""

MAX_POINTS = 240
"""Maximum points per line; more than one per 1.5 pixels only makes the page larger."""

MAX_MORE = 24
ON_POLICY_NOTE = (
    "Each rollout is used for one update, so every probability ratio is 1 and this is a mean of "
    "advantages, which cancel in each group: near 0 by construction. It does not measure learning; "
    "the reward, the entropy and the results do."
)

Points = list[tuple[float, float]]


def curve_charts(runs: Sequence[Run]) -> tuple[list[str], list[str]]:
    """Returns the charts of the metrics in ``CURVES``, and the charts of the others."""
    recorded = {name for run in runs for name in run.curves}
    recorded -= {name for name, parts in PARTS.items() if recorded.intersection(parts)}
    known = [explained(curve, runs) for curve in CURVES if curve.key in recorded]
    rest = sorted(recorded - {curve.key for curve in CURVES})
    other = [Curve(key=name, title=name) for name in rest if not name.startswith("perf/")]
    return (
        [chart for curve in known if (chart := line_chart(curve, runs))],
        [chart for curve in other[:MAX_MORE] if (chart := line_chart(curve, runs))],
    )


def explained(curve: Curve, runs: Sequence[Run]) -> Curve:
    """Returns the curve with what these runs say about it: scale of the rewards, meaning."""
    having = [run for run in runs if curve.key in run.curves]
    if curve.key == "reward/mean":
        scales = {reward_scale(run) for run in having} - {""}
        return replace(curve, unit="; ".join([curve.unit, *sorted(scales)]))
    if curve.key == "loss/policy" and all(map(_one_update, having)):
        return replace(curve, note=ON_POLICY_NOTE)
    return curve


def _one_update(run: Run) -> bool:
    """Whether each batch of rollouts is used for one update, as runs without the setting do."""
    return (run.settings or {}).get("train.updates_per_rollout", "1") == "1"


def smoothing_width(runs: Sequence[Run]) -> int:
    """Returns the odd width of the moving average, a twentieth of the longest run, in steps."""
    longest = max((len(points) for run in runs for points in run.curves.values()), default=1)
    return max(1, longest // 20) // 2 * 2 + 1


def line_chart(curve: Curve, runs: Sequence[Run]) -> str:
    """Draws one metric of all arms, raw and smoothed; empty unless an arm has two points."""
    raw = {
        index: run.curves[curve.key]
        for index, run in enumerate(runs)
        if len(run.curves.get(curve.key, [])) > 1
    }
    if not raw:
        return ""
    width = smoothing_width(runs)
    lines = {index: _smoothed(points, width) for index, points in raw.items()}
    frame = Frame(
        x=_bounds([step for points in raw.values() for step, _ in points]),
        y=_value_bounds(raw.values(), lines.values()),
    )
    drawn = [
        f'<path class="raw s{index % STYLES}" d="{frame.path(_thin(points))}"/>'
        for index, points in raw.items()
    ] + [
        f'<path class="line s{index % STYLES}" d="{frame.path(_thin(points))}"/>'
        for index, points in lines.items()
    ]
    ends = ", ".join(f"{runs[i].name} {short(line[-1][1])}" for i, line in lines.items())
    unit = f" <small>{escape(curve.unit)}</small>" if curve.unit else ""
    note = f'<p class="note">{escape(curve.note)}</p>' if curve.note else ""
    return (
        f'<figure class="chart"><figcaption>{escape(curve.title)}{unit}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" data-frame="{frame.as_data()}" '
        f'data-lines="{_hover_data(lines, runs)}" '
        f'aria-label="{escape(curve.title)} by step; at the end: {escape(ends)}">'
        f"{frame.axes()}<svg {frame.clip()}>{''.join(drawn)}</svg></svg>{note}</figure>"
    )


class Frame:
    """The axes of a chart, which map data to positions in the picture."""

    def __init__(self, *, x: tuple[float, float], y: tuple[float, float]) -> None:
        self.x_low, self.x_high = x
        self.y_low, self.y_high = y
        self.width = WIDTH - LEFT - RIGHT
        self.height = HEIGHT - TOP - BOTTOM

    def to_x(self, step: float) -> float:
        """Returns the x position of a step."""
        return LEFT + self.width * (step - self.x_low) / (self.x_high - self.x_low)

    def to_y(self, value: float) -> float:
        """Returns the y position of a value."""
        return TOP + self.height * (self.y_high - value) / (self.y_high - self.y_low)

    def path(self, points: Points) -> str:
        """Returns the SVG path through the points."""
        places = [f"{self.to_x(step):.1f} {self.to_y(value):.1f}" for step, value in points]
        return "M" + "L".join(places)

    def clip(self) -> str:
        """Returns the attributes of an inner picture that clips its content to the frame."""
        place = f'x="{LEFT}" y="{TOP}" width="{self.width}" height="{self.height}"'
        return f'{place} viewBox="{LEFT} {TOP} {self.width} {self.height}"'

    def axes(self) -> str:
        """Draws grid lines with numbers, and the name of the x axis."""
        parts = [f'<path class="grid" d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>']
        values = ticks(self.y_low, self.y_high, 4)
        for value, label in zip(values, tick_labels(values), strict=True):
            y = self.to_y(value)
            parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
            parts.append(_text(LEFT - 6, y + 3.5, label, "end"))
        for step in ticks(self.x_low, self.x_high, 5):
            parts.append(_text(self.to_x(step), HEIGHT - BOTTOM + 15, f"{step:g}", "middle"))
        parts.append(_text(LEFT + self.width / 2, HEIGHT - 4, "step", "middle"))
        return "".join(parts)

    def as_data(self) -> str:
        """Returns the bounds with which the script finds the step under the pointer."""
        x = [LEFT, WIDTH - RIGHT, self.x_low, self.x_high]
        y = [TOP, HEIGHT - BOTTOM, self.y_low, self.y_high]
        return escape(json.dumps({"x": x, "y": y}))


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _smoothed(points: Points, width: int) -> Points:
    values = smooth([value for _, value in points], width)
    return [(step, value) for (step, _), value in zip(points, values, strict=True)]


def _thin(points: Points) -> Points:
    stride = -(-len(points) // MAX_POINTS)
    kept = points[::stride]
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def _bounds(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    if low == high:
        margin = abs(low) * 0.1 or 0.5
        return low - margin, high + margin
    return low, high


def _value_bounds(raw: Collection[Points], lines: Collection[Points]) -> tuple[float, float]:
    """Returns bounds for all smoothed lines and 98 % of the raw values; clips single spikes."""
    values = [value for points in raw for _, value in points]
    seen = [value for points in lines for _, value in points]
    seen += [quantile(values, 0.01), quantile(values, 0.99)]
    low, high = _bounds(seen)
    margin = 0.05 * (high - low)
    return (0.0 if low == 0 else low - margin), high + margin


def _hover_data(lines: dict[int, Points], runs: Sequence[Run]) -> str:
    data = [
        {
            "name": runs[index].name,
            "style": index % STYLES,
            "points": [[step, float(f"{value:.4g}")] for step, value in _thin(points)],
        }
        for index, points in lines.items()
    ]
    return escape(json.dumps(data, separators=(",", ":"), ensure_ascii=False))
