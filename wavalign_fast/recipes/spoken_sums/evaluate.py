"""Evaluates held-out answers: is the text right, and does the speech say the text?"""

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from wavalign_fast.data.records import Evaluation, Example, SpokenSample
from wavalign_fast.recipes.spoken_sums import vocabulary as vocab
from wavalign_fast.recipes.spoken_sums.assets import SpeechAssets
from wavalign_fast.recipes.spoken_sums.base_model import collate, modality_losses
from wavalign_fast.recipes.spoken_sums.data import example_number, spoken_answer
from wavalign_fast.recipes.spoken_sums.decoder import decode
from wavalign_fast.recipes.spoken_sums.judge import Judge
from wavalign_fast.recipes.spoken_sums.mel import SAMPLE_RATE
from wavalign_fast.rollout import sample_completions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAX_NEW_TOKENS = 72
NUM_SAMPLES = 8
"""Number of answers that are kept with their waveforms."""


def sample_answers(
    model: "PreTrainedModel", examples: Sequence[Example], *, temperature: float, seed: int
) -> list[list[int]]:
    """Samples one completion per example, reproducibly for a seed."""
    return sample_completions(
        model,
        [example.prompt_ids for example in examples],
        max_new_tokens=MAX_NEW_TOKENS,
        eos_id=vocab.EOS,
        pad_id=vocab.PAD,
        temperature=temperature,
        generator=torch.Generator(model.device).manual_seed(seed),
    )


def _share_equal(seen: Sequence[str], wanted: Sequence[str]) -> float:
    # An empty text and silence do not count as equal.
    return sum(a == b != "" for a, b in zip(seen, wanted, strict=True)) / len(wanted)


def _judged_metrics(
    heard: Sequence[str | None], texts: Sequence[str], wanted: Sequence[str]
) -> dict[str, float]:
    """Returns shares of the judged answers, and the number of failures of the judge if any."""
    judged = [item for item in zip(heard, texts, wanted, strict=True) if item[0] is not None]
    metrics: dict[str, float] = {}
    if judged:
        words, written, right = zip(*judged, strict=True)
        metrics["speech_matches_text"] = _share_equal(words, written)
        metrics["speech_says_sum"] = _share_equal(words, right)
    if len(judged) < len(heard):
        metrics["judge_failed"] = float(len(heard) - len(judged))
    return metrics


def spoken_sample(
    example: Example, text: str, codes: Sequence[int], heard: str | None, assets: SpeechAssets
) -> SpokenSample:
    """Returns an answer with its waveform."""
    return SpokenSample(
        prompt=example.prompt,
        reference=example.reference,
        text=text,
        heard=heard,
        waveform=decode(codes, assets.centroids),
        sample_rate=SAMPLE_RATE,
    )


@torch.no_grad()
def teacher_forced(
    model: "PreTrainedModel", examples: Sequence[Example], assets: SpeechAssets, seed: int
) -> tuple[float, float]:
    """Returns the mean cross-entropy of text (with EOS) and of speech, over right answers."""
    rng = random.Random(seed)
    answers = [spoken_answer(example_number(example), assets, rng) for example in examples]
    ids, labels = collate([example.prompt_ids for example in examples], answers)
    was_training = model.training
    text, speech = modality_losses(model.eval(), ids.to(model.device), labels.to(model.device))
    model.train(was_training)
    return text.item(), speech.item()


def evaluate(
    model: "PreTrainedModel",
    examples: Sequence[Example],
    *,
    assets: SpeechAssets,
    judge: Judge,
    items: int,
    seed: int,
) -> Evaluation:
    """Evaluates ``items`` sampled answers; repeats the examples as often as needed.

    Metrics are shares of the answers sampled at temperature 1, except ``text_accuracy_greedy``,
    which takes each example once. Metrics of speech leave out answers on which the judge failed;
    ``judge_failed`` counts those. ``speech_ce`` and ``text_ce`` are in nats per token,
    ``speech_length`` in codes of 80 ms.
    """
    if items < 1:
        raise ValueError(f"items is {items}, wanted at least 1")
    asked = [examples[item % len(examples)] for item in range(items)]
    sampled = sample_answers(model, asked, temperature=1.0, seed=seed)
    answers = [vocab.split_answer(ids) for ids in sampled]
    heard = judge.hear([codes for _, codes in answers])

    once = asked[: len(examples)]
    greedy = sample_answers(model, once, temperature=0.0, seed=seed)
    text_ce, speech_ce = teacher_forced(model, once, assets, seed)

    texts = [text for text, _ in answers]
    wanted = [example.reference for example in asked]
    metrics = {
        "text_accuracy": _share_equal(texts, wanted),
        "text_accuracy_greedy": _share_equal(
            [vocab.split_answer(ids)[0] for ids in greedy], wanted[: len(once)]
        ),
        **_judged_metrics(heard, texts, wanted),
        "speech_ce": speech_ce,
        "text_ce": text_ce,
        "ended": sum(ids[-1] == vocab.EOS for ids in sampled) / items,
        "speech_length": sum(len(codes) for _, codes in answers) / items,
        "items": float(items),
    }
    samples = [
        spoken_sample(example, text, codes, words, assets)
        for example, (text, codes), words in zip(
            asked[:NUM_SAMPLES], answers[:NUM_SAMPLES], heard[:NUM_SAMPLES], strict=True
        )
    ]
    return Evaluation(metrics=metrics, samples=samples)
