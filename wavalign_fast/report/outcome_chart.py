"""Draws the outcome: text accuracy against the share of speech that agrees with the text."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from wavalign_fast.report.charts import STYLES
from wavalign_fast.report.formatting import escape, percent
from wavalign_fast.report.runs import Run
from wavalign_fast.report.statistics import ticks, wilson_interval

WIDTH, HEIGHT = 440, 360
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 14, 44
LABEL_HEIGHT = 14
LETTER_WIDTH = 7.6
DOT = 6

X_KEY, Y_KEY = "text_accuracy", "speech_matches_text"


@dataclass
class Point:
    """One model in the plane of the two shares."""

    name: str
    style: str
    x: float
    y: float
    items: float | None

    def x_interval(self) -> tuple[float, float]:
        """Returns the 95 % interval of ``x``; of an unknown number of answers ``x`` itself."""
        return wilson_interval(self.x, self.items) if self.items else (self.x, self.x)

    def y_interval(self) -> tuple[float, float]:
        """Returns the 95 % interval of ``y``; of an unknown number of answers ``y`` itself."""
        return wilson_interval(self.y, self.items) if self.items else (self.y, self.y)


@dataclass(frozen=True)
class Box:
    """A rectangle in the picture."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: "Box") -> bool:
        """Whether the two rectangles overlap."""
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )


def outcome_chart(runs: Sequence[Run]) -> str:
    """Draws base and arms as points with 95 % intervals; empty if the shares are missing."""
    arms = [
        Point(run.name, f"s{index % STYLES}", run.final[X_KEY], run.final[Y_KEY], _items(run.final))
        for index, run in enumerate(runs)
        if {X_KEY, Y_KEY} <= set(run.final)
    ]
    if not arms:
        return ""
    base = next((run.base for run in runs if {X_KEY, Y_KEY} <= set(run.base)), None)
    points = list(arms)
    if base:
        points.insert(0, Point("base", "base", base[X_KEY], base[Y_KEY], _items(base)))
    plane = Plane(points)
    arrows = [plane.arrow(points[0], arm) for arm in arms] if base else []
    marks = [plane.mark(point) for point in points]
    names = place_names(points, plane)
    summary = "; ".join(
        f"{point.name}: text {percent(point.x)}, speech {percent(point.y)}" for point in points
    )
    return (
        '<figure class="outcome">'
        "<figcaption>Better is up and to the right <small>bars: 95% intervals</small></figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(summary)}">'
        f"{plane.axes()}{''.join([*arrows, *marks, *names])}</svg></figure>"
    )


class Plane:
    """Axes from 0 to 1, cropped to the points."""

    def __init__(self, points: Sequence[Point]) -> None:
        self.x_low, self.x_high = _range(end for point in points for end in point.x_interval())
        self.y_low, self.y_high = _range(end for point in points for end in point.y_interval())

    def to_x(self, share: float) -> float:
        """Returns the x position of a share."""
        return LEFT + (WIDTH - LEFT - RIGHT) * (share - self.x_low) / (self.x_high - self.x_low)

    def to_y(self, share: float) -> float:
        """Returns the y position of a share."""
        return TOP + (HEIGHT - TOP - BOTTOM) * (self.y_high - share) / (self.y_high - self.y_low)

    def axes(self) -> str:
        """Draws the grid, its numbers and the names of both axes."""
        right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
        parts = []
        for share in ticks(self.x_low, self.x_high, 5):
            x = self.to_x(share)
            parts.append(f'<path class="grid" d="M{x:.1f} {TOP}V{bottom}"/>')
            parts.append(
                f'<text x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{percent(share)}</text>'
            )
        for share in ticks(self.y_low, self.y_high, 5):
            y = self.to_y(share)
            parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{right}"/>')
            parts.append(
                f'<text x="{LEFT - 7}" y="{y + 3.5:.1f}" text-anchor="end">{percent(share)}</text>'
            )
        middle_x, middle_y = (LEFT + right) / 2, (TOP + bottom) / 2
        parts.append(
            f'<text class="axis" x="{middle_x}" y="{HEIGHT - 6}" text-anchor="middle">'
            "text is the right answer</text>"
            f'<text class="axis" x="12" y="{middle_y}" text-anchor="middle" '
            f'transform="rotate(-90 12 {middle_y})">speech says what the text says</text>'
        )
        return "".join(parts)

    def arrow(self, base: Point, arm: Point) -> str:
        """Draws a faint line from the base to an arm."""
        return (
            f'<path class="way {arm.style}" d="M{self.to_x(base.x):.1f} {self.to_y(base.y):.1f}'
            f'L{self.to_x(arm.x):.1f} {self.to_y(arm.y):.1f}"/>'
        )

    def mark(self, point: Point) -> str:
        """Draws a point with its intervals."""
        x, y = self.to_x(point.x), self.to_y(point.y)
        bars = ""
        if point.items:
            low, high = (self.to_x(share) for share in point.x_interval())
            bottom, top = (self.to_y(share) for share in point.y_interval())
            bars = (
                f'<path class="bar {point.style}" d="M{low:.1f} {y:.1f}H{high:.1f}'
                f'M{x:.1f} {bottom:.1f}V{top:.1f}"/>'
            )
        return f'{bars}<circle class="dot {point.style}" cx="{x:.1f}" cy="{y:.1f}" r="5.5"/>'


def place_names(points: Sequence[Point], plane: Plane) -> list[str]:
    """Places each name near its point, in the first place without dots and other names."""
    taken = []
    for point in points:
        x, y = plane.to_x(point.x), plane.to_y(point.y)
        taken.append(Box(x - DOT, y - DOT, x + DOT, y + DOT))
    names = []
    for point in sorted(points, key=lambda point: -point.y):
        boxes = _name_boxes(plane.to_x(point.x), plane.to_y(point.y), point.name)
        box = next((b for b in boxes if not any(b.overlaps(t) for t in taken)), boxes[0])
        taken.append(box)
        # With this anchor a font of another width only moves the far end of the name.
        edge, anchor = (box.left, "start") if box.left > plane.to_x(point.x) else (box.right, "end")
        names.append(
            f'<text class="name" x="{edge:.1f}" y="{box.bottom - 3:.1f}" text-anchor="{anchor}">'
            f"{escape(point.name)}</text>"
        )
    return names


def _name_boxes(x: float, y: float, name: str) -> list[Box]:
    """Returns the possible places for the name of the point at x, y, the best first."""
    width = LETTER_WIDTH * len(name)
    boxes = []
    for distance in (0, 12, 24, 36, 48):
        for left in (x + DOT + 2, x - DOT - 2 - width):
            for top in (y - LABEL_HEIGHT - 2 - distance, y + 2 + distance):
                boxes.append(Box(left, top, left + width, top + LABEL_HEIGHT))
    inside = [box for box in boxes if box.left >= LEFT and box.right <= WIDTH and box.top >= 0]
    return [box for box in inside if box.bottom <= HEIGHT - BOTTOM] or boxes


def _items(figures: dict[str, float]) -> float | None:
    return figures.get("items") or None


def _range(ends: Iterable[float]) -> tuple[float, float]:
    """Returns a range in tenths around the ends of all intervals, so that no bar leaves it."""
    given = list(ends)
    low = max(0.0, math.floor(10 * (min(given) - 0.02)) / 10)
    high = min(1.0, math.ceil(10 * (max(given) + 0.02)) / 10)
    return (low, max(high, low + 0.2)) if low <= 0.8 else (0.8, 1.0)
