"""Formats texts and numbers for the page."""

import html
from collections.abc import Sequence


def escape(text: object) -> str:
    """Escapes text for an element or a quoted attribute."""
    return html.escape(str(text), quote=True)


def percent(share: float) -> str:
    """``.602 -> "60%"``."""
    return f"{100 * share:.0f}%"


def points(low: float, high: float) -> str:
    """``-.048, .061 -> "−5 to +6 points"``: an interval of the change of a share."""
    ends = (f"{100 * end:+.0f}".replace("-", "−") for end in (low, high))
    first, last = ("0" if end in ("+0", "−0") else end for end in ends)
    return f"{first} to {last} points"


def short(value: float) -> str:
    """Formats a number with about three digits, without an exponent if possible."""
    if value == 0:
        return "0"
    if abs(value) >= 10000 or abs(value) < 0.0005:
        return _exponent(value)
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:.{digits}f}".replace("-", "−")


def _exponent(value: float) -> str:
    return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")


def tick_labels(values: Sequence[float]) -> list[str]:
    """Formats axis numbers, all with as many decimals as any of them needs."""
    largest = max((abs(value) for value in values), default=0.0)
    if largest and not 0.001 <= largest < 100_000:
        texts = [_exponent(value).replace(".0e", "e") for value in values]
        return [
            "0" if value == 0 else t.replace("-", "−")
            for value, t in zip(values, texts, strict=True)
        ]
    decimals = next(
        (count for count in range(6) if all(_is_round(value, count) for value in values)), 6
    )
    return [f"{value:.{decimals}f}".replace("-", "−") for value in values]


def _is_round(value: float, decimals: int) -> bool:
    return abs(round(value, decimals) - value) < 1e-9


def duration(seconds: float) -> str:
    """``754 -> "12 min 34 s"``."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
