"""A measured case as rows, and who is first in what. Everything here is read from the JSON."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

BOUND = "three_gemms"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One side of a case. A figure is ``None`` where it was not measured."""

    name: str
    label: str
    version: str | None = None
    runs: str | None = None
    """Which of its implementations ran."""
    ours: bool = False
    primary: bool = False
    """The side that stands for this package."""
    bound: bool = False
    """A bound, not a rival: the GEMMs of every exact method."""
    outcome: str = "right"
    detail: str | None = None
    wall: float | None = None
    wall_quartiles: tuple[float, float] | None = None
    cpu: float | None = None
    graph: float | None = None
    """Seconds of its replay as a CUDA graph."""
    ratio: float | None = None
    """Its time over ours."""
    roofline: float | None = None
    """Time of the three GEMMs alone over its time."""
    extra: int | None = None
    """Bytes beyond operands and gradients."""
    error: float | None = None
    """Largest error of the value that every side returns, see ``error_name``."""
    gradient_error: float | None = None


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A figure in which the sides are compared; less is better."""

    key: str
    title: str
    of: Callable[[Row], float | None]


METRICS = (
    # Ratios are taken round by round, so they are steadier than the seconds on a shared machine.
    Metric(key="time", title="time", of=lambda row: row.ratio),
    Metric(key="memory", title="extra memory", of=lambda row: row.extra),
    Metric(key="error", title="error", of=lambda row: row.error),
)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where ours stands in one metric of one case."""

    metric: Metric
    ours: float
    best: Row
    """The best rival."""
    factor: float | None
    """The best rival's figure over ours; ``None`` where ours is 0."""
    first: bool
    level: bool
    """Too close to call: times with overlapping quartile ranges, memory within 5 %, or errors
    within a factor of two, which the order of a summation can cause."""


def rows_of(case: dict[str, Any]) -> list[Row]:
    """Ours first, then the rivals by time, the bound, and the sides without a time."""
    primary, value = primary_of(case), error_name(case)
    rows = [_row(name, side, primary, value) for name, side in case["sides"].items()]

    def order(row: Row) -> tuple[bool, bool, bool, float]:
        return (row.wall is None, row.bound, not row.primary, row.wall or 0.0)

    return sorted(rows, key=order)


def primary_of(case: dict[str, Any]) -> str | None:
    """The side that stands for this package: its first one that was timed."""
    for name, side in case["sides"].items():
        if side.get("ours") and "wall_s" in side:
            return str(name)
    return None


def error_name(case: dict[str, Any]) -> str:
    """The value in which the sides are compared: "logp" where all return it, else "loss"."""
    checked = [side["errors"] for side in case["sides"].values() if "errors" in side]
    return "logp" if all("logp" in errors for errors in checked) else "loss"


def places(case: dict[str, Any]) -> list[Place]:
    """Ours against the best rival, in every metric that both have."""
    rows = rows_of(case)
    ours = next((row for row in rows if row.primary), None)
    rivals = [row for row in rows if not row.ours and not row.bound and row.wall is not None]
    found = []
    for metric in METRICS:
        measured = [row for row in rivals if metric.of(row) is not None]
        own = None if ours is None else metric.of(ours)
        if ours is None or own is None or not measured:
            continue
        best = min(measured, key=lambda row: metric.of(row) or 0.0)
        theirs = metric.of(best) or 0.0
        found.append(
            Place(
                metric=metric,
                ours=own,
                best=best,
                factor=theirs / own if own else None,
                first=own <= theirs,
                level=_level(metric, ours, best),
            )
        )
    return found


@dataclass(frozen=True, kw_only=True)
class Standing:
    """In how many cases ours is first, level and behind in one metric."""

    metric: Metric
    first: int
    level: int
    behind: int

    @property
    def cases(self) -> int:
        return self.first + self.level + self.behind


def standings(cases: Iterable[dict[str, Any]]) -> list[Standing]:
    """The standing over all cases with a rival, in every metric that was compared."""
    found = [place for case in cases for place in places(case)]
    counted = []
    for metric in METRICS:
        of_metric = [place for place in found if place.metric is metric]
        level = sum(place.level for place in of_metric)
        first = sum(place.first and not place.level for place in of_metric)
        if of_metric:
            behind = len(of_metric) - level - first
            counted.append(Standing(metric=metric, first=first, level=level, behind=behind))
    return counted


def _row(name: str, side: dict[str, Any], primary: str | None, value: str) -> Row:
    ratios = side.get("wall_ratio_to", {})
    errors = side.get("errors", {})
    quartiles = side.get("wall_quartiles_s")
    ratio = 1.0 if name == primary else ratios.get(primary)
    return Row(
        name=name,
        label=side["label"],
        version=side.get("version"),
        runs=side.get("runs"),
        ours=side.get("ours", False),
        primary=name == primary,
        bound=side.get("bound", False),
        outcome=side["outcome"],
        detail=side.get("detail"),
        wall=side.get("wall_s"),
        wall_quartiles=None if quartiles is None else (quartiles[0], quartiles[1]),
        cpu=side.get("cpu_s"),
        graph=side.get("graph", {}).get("wall_s"),
        ratio=ratio,
        roofline=1.0 / ratios[BOUND] if BOUND in ratios else None,
        extra=side.get("extra_bytes_beyond_gradients"),
        error=errors.get(value),
        gradient_error=max(
            (value for key, value in errors.items() if key.startswith("grad")), default=None
        ),
    )


def _level(metric: Metric, ours: Row, best: Row) -> bool:
    if metric.key == "time":
        return _overlap(ours, best)
    own, theirs = metric.of(ours) or 0.0, metric.of(best) or 0.0
    if own == theirs:
        return True
    margin = {"memory": 1.05, "error": 2.0}[metric.key]
    return max(own, theirs) <= margin * min(own, theirs)


def _overlap(a: Row, b: Row) -> bool:
    if a.wall_quartiles is None or b.wall_quartiles is None:
        return False
    return a.wall_quartiles[0] <= b.wall_quartiles[1] and b.wall_quartiles[0] <= a.wall_quartiles[1]
