"""What recipes share: answers of a model to examples, and the numbers that describe answers."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

import torch

from wavalign_fast.data.records import Completion, Example
from wavalign_fast.losses import ModalityLayout
from wavalign_fast.models import PromptEmbeddings, TwoStreams
from wavalign_fast.rollout import sample_completions, uniforms

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Vocabulary(Protocol):
    """What is known of a model's ids."""

    @property
    def layout(self) -> ModalityLayout:
        """The class of each id."""
        ...

    @property
    def pad_id(self) -> int:
        """Any id, for padding."""
        ...

    @property
    def ends(self) -> frozenset[int]:
        """The ids that end an answer."""
        ...

    def speech(self, ids: Iterable[int]) -> list[int]:
        """Returns those ids that stand for speech codes, in order."""
        ...


def sample_answers(
    model: "PreTrainedModel",
    examples: Sequence[Example],
    tokens: Vocabulary,
    *,
    temperature: float,
    max_new_tokens: int,
    rows: int,
    seed: int,
    items: Sequence[int] | None = None,
    prompt_embeddings: PromptEmbeddings | None = None,
    streams: TwoStreams | None = None,
) -> list[Completion]:
    """Samples one answer per example, ``rows`` at a time, reproducibly for a seed.

    Args:
        items: a number for each example, which chooses its draws; by default 0, 1, ….
    """
    answers: list[Completion] = []
    numbers = torch.arange(len(examples)) if items is None else torch.tensor(items).long()
    draws = uniforms(seed, 0, numbers, torch.zeros_like(numbers), torch.arange(max_new_tokens))
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
            prompt_embeddings=prompt_embeddings,
            streams=streams,
        )
        answers += [
            Completion(example=example, ids=tuple(ids), ended=bool(ids) and ids[-1] in tokens.ends)
            for example, ids in zip(asked, sampled, strict=True)
        ]
    return answers


def answer_metrics(answers: Sequence[Completion], tokens: Vocabulary) -> dict[str, float]:
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
