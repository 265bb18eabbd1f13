"""What a recipe gives the training loop: model, prompts, demonstrations, rewards, evaluation."""

import random
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Protocol

from wavalign_fast.data.records import Completion, Demonstration, Evaluation, Example
from wavalign_fast.losses import ModalityLayout

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Task(Protocol):
    """A post-training task. The loop knows nothing else about a recipe."""

    layout: ModalityLayout
    pad_id: int
    train_examples: Sequence[Example]

    @property
    def eos_id(self) -> int | Collection[int]:
        """The id that ends an answer, or each of several; a class attribute will do."""
        ...

    def load_model(self) -> "PreTrainedModel":
        """The base model, fp32, in eval mode."""
        ...

    def demonstrations(
        self, examples: Sequence[Example], rng: random.Random
    ) -> list[Demonstration]:
        """One spoken demonstration per example, for the anchor."""
        ...

    def rewards(self, completions: Sequence[Completion]) -> list[float | None]:
        """One reward per completion on the task's scale; ``None`` where the judge failed.

        One that is not finite counts as missing too.
        """
        ...

    def evaluate(self, model: "PreTrainedModel", *, items: int, seed: int) -> Evaluation:
        """Held-out evaluation over ``items`` spoken answers."""
        ...

    def answer(self, model: "PreTrainedModel", prompt: str, *, seed: int) -> Evaluation:
        """Answer one prompt in text and speech; ``samples`` holds it."""
        ...
