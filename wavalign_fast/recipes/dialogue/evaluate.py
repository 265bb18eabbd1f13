"""Evaluates answers to held-out records: their reward, their length, and whether they end."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from wavalign_fast.data.records import Completion, Evaluation, Example, SpokenSample
from wavalign_fast.recipes.dialogue.rewards import Rewards
from wavalign_fast.recipes.dialogue.tokens import Tokens
from wavalign_fast.rollout import sample_completions, uniforms

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NUM_SAMPLES = 8
"""Number of answers that are kept as text."""


def sample_answers(
    model: "PreTrainedModel",
    examples: Sequence[Example],
    tokens: Tokens,
    *,
    temperature: float,
    max_new_tokens: int,
    rows: int,
    seed: int,
) -> list[Completion]:
    """Samples one answer per example, ``rows`` at a time, reproducibly for a seed."""
    answers: list[Completion] = []
    items = torch.arange(len(examples))
    draws = uniforms(seed, 0, items, torch.zeros_like(items), torch.arange(max_new_tokens))
    for start in range(0, len(examples), rows):
        asked = examples[start : start + rows]
        sampled = sample_completions(
            model,
            [example.prompt_ids for example in asked],
            max_new_tokens=max_new_tokens,
            eos_id=tokens.ends,
            pad_id=tokens.pad_id,
            temperature=temperature,
            draws=draws[start : start + rows] if temperature > 0 else None,
        )
        answers += [
            Completion(example=example, ids=tuple(ids), ended=bool(ids) and ids[-1] in tokens.ends)
            for example, ids in zip(asked, sampled, strict=True)
        ]
    return answers


def shown_sample(done: Completion, tokens: Tokens, reward: float | None) -> SpokenSample:
    """Returns an answer as text; speech ids have no sound here."""
    return SpokenSample(
        prompt=done.example.prompt,
        reference=done.example.reference,
        text=tokens.text(done.ids),
        reward=reward,
    )


def answer_metrics(answers: Sequence[Completion], tokens: Tokens) -> dict[str, float]:
    """Returns the share of answers that end, and mean numbers of ids: all, text and speech.

    Boundary and end ids count in ``length`` alone.
    """
    marks = tokens.ends | {*tokens.layout.boundary}
    speech = [len(tokens.speech(done.ids)) for done in answers]
    marked = [sum(token in marks for token in done.ids) for done in answers]
    lengths = [len(done.ids) for done in answers]
    number = len(answers)
    return {
        "ended": sum(done.ended for done in answers) / number,
        "length": sum(lengths) / number,
        "text_length": (sum(lengths) - sum(speech) - sum(marked)) / number,
        "speech_length": sum(speech) / number,
    }


def reward_metrics(rewards: Sequence[float | None]) -> dict[str, float]:
    """Returns the mean reward on the function's scale, and how many are missing if any are."""
    known = [reward for reward in rewards if reward is not None]
    metrics = {"reward": sum(known) / len(known)} if known else {}
    if len(known) < len(rewards):
        metrics["reward_failed"] = float(len(rewards) - len(known))
    return metrics


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
