"""Evaluates answers to held-out records: their reward, their length, and whether they end."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from wavalign_fast.data.records import Completion, Evaluation, Example, SpokenSample
from wavalign_fast.recipes.answers import answer_metrics, reward_metrics, sample_answers
from wavalign_fast.recipes.dialogue.rewards import Rewards
from wavalign_fast.recipes.dialogue.tokens import Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

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


def evaluate(
    model: "PreTrainedModel",
    examples: Sequence[Example],
    *,
    tokens: Tokens,
    rewards: Rewards,
    items: int,
    seed: int,
    temperature: float,
    max_new_tokens: int,
    rows: int,
) -> Evaluation:
    """Evaluates ``items`` answers; repeats the examples as often as needed, unless greedy.

    Args:
        rows: answers that are sampled at once.
    """
    if items < 1:
        raise ValueError(f"items is {items}, wanted at least 1")
    if temperature == 0:
        items = min(items, len(examples))
    answers = sample_answers(
        model,
        [examples[item % len(examples)] for item in range(items)],
        tokens,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        rows=rows,
        seed=seed,
    )
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
