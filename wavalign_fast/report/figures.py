"""What the numbers of a run are called on the page."""

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
