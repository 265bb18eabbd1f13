"""What the numbers of a run are called on the page, and how they are written."""

import html
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Figure:
    """An evaluation figure: one column of the result table."""

    key: str
    title: str
    meaning: str
    share: bool = False
    """A share of the evaluated answers, written in per cent."""
    sampled: bool = False
    """Counted over ``items`` answers, so that it has an interval."""
    better: int = 0
    """1 where more is better, -1 where less is, 0 where neither."""


FIGURES = (
    Figure(
        key="text_accuracy",
        title="Text right",
        meaning="share of sampled answers whose text is the right answer",
        share=True,
        sampled=True,
        better=1,
    ),
    Figure(
        key="text_accuracy_greedy",
        title="Text right, greedy",
        meaning="the same with the likeliest token each time, each held-out prompt once",
        share=True,
        better=1,
    ),
    Figure(
        key="speech_matches_text",
        title="Speech = text",
        meaning="share of answers in which the judge hears exactly what the model wrote",
        share=True,
        sampled=True,
        better=1,
    ),
    Figure(
        key="speech_says_sum",
        title="Speech right",
        meaning="share of answers in which the judge hears the right answer",
        share=True,
        sampled=True,
        better=1,
    ),
    Figure(
        key="text_ce",
        title="Text CE",
        meaning="cross-entropy of held-out right text, nats a token",
        better=-1,
    ),
    Figure(
        key="speech_ce",
        title="Speech CE",
        meaning="cross-entropy of held-out recorded speech, nats a token: how natural speech "
        "still looks to the model",
        better=-1,
    ),
    Figure(
        key="ended",
        title="Ended",
        meaning="share of answers that end by themselves",
        share=True,
        sampled=True,
        better=1,
    ),
    Figure(
        key="speech_length",
        title="Length",
        meaning="mean number of speech codes in an answer",
    ),
    Figure(
        key="judge_failed",
        title="Not judged",
        meaning="answers on which the judge failed; the shares of speech leave them out",
    ),
)
NOT_COLUMNS = {"items"}


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A metric of the training steps: one chart."""

    key: str
    title: str
    unit: str = ""


CURVES = (
    Curve(key="reward/mean", title="Reward", unit="mean of the step’s rollouts"),
    Curve(key="gate/lambda", title="Mixing weight λ", unit="1 = policy loss only"),
    Curve(key="kl", title="KL to the base", unit="nats a token"),
    Curve(key="loss/policy", title="Policy loss"),
    Curve(key="loss/anchor", title="Anchor loss", unit="nats a token"),
    Curve(key="entropy", title="Entropy", unit="nats a token"),
    Curve(key="text_entropy", title="Entropy, text", unit="nats a token"),
    Curve(key="speech_entropy", title="Entropy, speech", unit="nats a token"),
    Curve(key="text_kl", title="KL to the base, text", unit="nats a token"),
    Curve(key="speech_kl", title="KL to the base, speech", unit="nats a token"),
)

PHASE_NAMES = {
    "rollout": "rollout",
    "reward": "reward",
    "reference": "reference log-probs",
    "forward_backward": "forward + backward",
    "optimizer": "optimizer",
    "other": "other",
}


def escape(text: object) -> str:
    """Text that may stand in an element or in a quoted attribute."""
    return html.escape(str(text), quote=True)


def percent(share: float) -> str:
    """``.602 -> "60%"``."""
    return f"{100 * share:.0f}%"


def short(value: float) -> str:
    """A number in about three digits, without an exponent where it can be avoided."""
    if value == 0:
        return "0"
    if abs(value) >= 10000 or abs(value) < 0.0005:
        return _exponent(value)
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:.{digits}f}".replace("-", "−")


def _exponent(value: float) -> str:
    return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")


def tick_labels(values: Sequence[float]) -> list[str]:
    """Axis numbers, all with as many decimals as the finest of them needs."""
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
