"""Evaluates answers to held-out records: their reward, their length, and whether they end."""

import math
from collections.abc import Sequence

from wavalign_fast.data.records import Completion, Evaluation, SpokenSample
from wavalign_fast.recipes.answers import answer_metrics, reward_metrics
from wavalign_fast.recipes.dialogue.rewards import Rewards
from wavalign_fast.recipes.dialogue.tokens import Tokens

NUM_SAMPLES = 8
"""Number of answers that are kept as text."""


def shown_sample(done: Completion, tokens: Tokens, reward: float | None) -> SpokenSample:
    """Returns an answer as text; speech ids have no sound here."""
    return SpokenSample(
        prompt=done.example.prompt,
        reference=done.example.reference,
        text=tokens.text(done.ids),
        reward=reward,
    )


def judged(
    answers: Sequence[Completion], *, tokens: Tokens, rewards: Rewards, rows: int
) -> Evaluation:
    """Returns the evaluation of sampled answers.

    Args:
        rows: answers whose rewards are asked for at once.
    """
    items = len(answers)
    given: list[float | None] = [None] * items
    metrics: dict[str, float] = {}
    if rewards.function is not None:
        given = [
            reward if reward is not None and math.isfinite(reward) else None
            for start in range(0, items, rows)
            for reward in rewards(answers[start : start + rows])
        ]
        metrics = reward_metrics(given)
    metrics |= {**answer_metrics(answers, tokens), "items": float(items)}
    samples = [
        shown_sample(done, tokens, reward)
        for done, reward in zip(answers[:NUM_SAMPLES], given[:NUM_SAMPLES], strict=True)
    ]
    return Evaluation(metrics=metrics, samples=samples)
