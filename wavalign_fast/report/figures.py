"""Names and descriptions of a run's results and curves on the page."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A result of the evaluation: one column of the table."""

    key: str
    title: str
    meaning: str
    share: bool = False
    """Whether it is a share of the evaluated answers, written in per cent."""
    sampled: bool = False
    """Whether it is counted over ``items`` answers and so has an interval."""
    better: int = 0
    """1 if more is better, -1 if less is, 0 if neither."""


FIGURES = (
    Figure(
        key="reward",
        title="Reward",
        meaning="mean reward of sampled answers, on the scale of the reward function",
        better=1,
    ),
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
        meaning="the same with greedy decoding, each held-out prompt once",
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
        meaning="cross-entropy of held-out right text, nats per token",
        better=-1,
    ),
    Figure(
        key="speech_ce",
        title="Speech CE",
        meaning="cross-entropy of held-out recorded speech, nats per token: how likely natural "
        "speech still is for the model",
        better=-1,
    ),
    Figure(
        key="ended",
        title="Ended",
        meaning="share of answers that end with the end-of-answer token",
        share=True,
        sampled=True,
        better=1,
    ),
    Figure(
        key="length",
        title="Length",
        meaning="mean number of tokens in an answer",
    ),
    Figure(
        key="text_length",
        title="Length, text",
        meaning="mean number of text tokens in an answer",
    ),
    Figure(
        key="speech_length",
        title="Length, speech",
        meaning="mean number of speech codes in an answer",
    ),
    Figure(
        key="speaks",
        title="Speaks",
        meaning="share of answers with speech; the others have the lowest reward of a judge who "
        "hears answers",
        share=True,
        sampled=True,
        better=1,
    ),
    Figure(
        key="writes",
        title="Writes",
        meaning="share of answers with words",
        share=True,
        sampled=True,
        better=1,
    ),
    Figure(
        key="judge_failed",
        title="Not judged",
        meaning="answers on which the judge failed; the shares of speech leave them out",
    ),
    Figure(
        key="reward_failed",
        title="No reward",
        meaning="answers without a reward; its mean leaves them out",
    ),
)
NOT_COLUMNS = {"items"}


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A metric of the training steps: one chart."""

    key: str
    title: str
    unit: str = ""
    note: str = ""
    """What to know before reading the chart."""


CURVES = (
    Curve(key="reward/mean", title="Reward", unit="mean of the step’s rollouts"),
    Curve(key="gate/lambda", title="Mixing weight λ", unit="1 = policy loss only"),
    Curve(key="loss/anchor", title="Anchor loss", unit="nats per token"),
    Curve(key="text_entropy", title="Entropy, text", unit="rollouts, nats per token"),
    Curve(key="speech_entropy", title="Entropy, speech", unit="rollouts, nats per token"),
    Curve(
        key="anchor_text_entropy",
        title="Entropy, text",
        unit="demonstrations, nats per token",
    ),
    Curve(
        key="anchor_speech_entropy",
        title="Entropy, speech",
        unit="demonstrations, nats per token",
    ),
    Curve(key="entropy", title="Entropy", unit="nats per token"),
    Curve(key="text_kl", title="KL to the base, text", unit="nats per token"),
    Curve(key="speech_kl", title="KL to the base, speech", unit="nats per token"),
    Curve(key="kl", title="KL to the base", unit="nats per token"),
    Curve(key="loss/policy", title="Policy loss"),
)
PARTS = {"entropy": ("text_entropy", "speech_entropy"), "kl": ("text_kl", "speech_kl")}
"""Metrics of all tokens that are not drawn beside those of their parts."""

PHASE_NAMES = {
    "rollout": "rollout",
    "reward": "reward",
    "reference": "reference log-probs",
    "forward_backward": "forward + backward",
    "exchange": "exchange between ranks",
    "optimizer": "optimizer",
    "other": "other",
}
