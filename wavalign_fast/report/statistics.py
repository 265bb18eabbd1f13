"""Statistics for the page."""

import math
from collections.abc import Sequence

Z95 = 1.959964
"""Two-sided 95 % quantile of the normal distribution."""


def wilson_interval(share: float, items: float) -> tuple[float, float]:
    """Returns Wilson's 95 % interval of a binomial share over ``items`` independent trials."""
    square = Z95 * Z95
    centre = (share + square / (2 * items)) / (1 + square / items)
    spread = share * (1 - share) / items + square / (4 * items * items)
    half = Z95 * math.sqrt(spread) / (1 + square / items)
    return max(0.0, centre - half), min(1.0, centre + half)


def difference_interval(
    before: float, items_before: float, after: float, items_after: float
) -> tuple[float, float]:
    """Returns the 95 % interval of ``after - before``, two shares of independent trials.

    Newcombe's method 10 (Statistics in Medicine 17, 1998, 873-890), from the two Wilson intervals.
    """
    low_1, high_1 = wilson_interval(before, items_before)
    low_2, high_2 = wilson_interval(after, items_after)
    change = after - before
    below = math.hypot(after - low_2, high_1 - before)
    above = math.hypot(high_2 - after, before - low_1)
    return change - below, change + above


def mean_value(points: Sequence[tuple[float, float]]) -> float:
    """Returns the mean of the values of a curve's (step, value) pairs."""
    return sum(value for _, value in points) / len(points)


def smooth(values: Sequence[float], width: int) -> list[float]:
    """Returns the centred moving average over ``width`` values, over fewer at both ends."""
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    result = []
    for index in range(len(values)):
        low = max(0, index - width // 2)
        high = min(len(values), index + width // 2 + 1)
        result.append((sums[high] - sums[low]) / (high - low))
    return result


def quantile(values: Sequence[float], share: float) -> float:
    """Returns the nearest of the sorted values at ``share``."""
    ordered = sorted(values)
    return ordered[round(share * (len(ordered) - 1))]


def ticks(low: float, high: float, count: int) -> list[float]:
    """Returns about ``count`` round numbers from ``low`` to ``high``."""
    span = high - low
    if span <= 0:
        return [low]
    raw = span / max(1, count)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]
