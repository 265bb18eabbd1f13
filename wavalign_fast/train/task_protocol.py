"""The interface between a recipe and the trainer."""

import random
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Protocol

from wavalign_fast.data.records import Completion, Demonstration, Evaluation, Example
from wavalign_fast.losses import ModalityLayout

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Task(Protocol):
    """A post-training task: everything that the trainer knows about a recipe.

    It may also have ``reward_scale``, a text that says what a reward means, such as "1 (wrong) to 5
    (right)"; the report shows it. For DPO it may have ``preferences``, a sequence of
    ``data.records.Preference``: its offline pairs. It may have ``prompt_embeddings``, the
    ``models.PromptEmbeddings`` whose ids its prompts hold. It may have ``streams``, the
    ``models.TwoStreams`` by which its lists of ids are those of a model with two streams.

    It may have ``load_mtp(model)``, which returns the MTP layers beside the model, a module with
    ``layers`` and ``loss_weight``, called as ``models.families.vita_mtp.MtpHead`` is.

    It may have ``start_rewards(completions)``, which starts what ``rewards`` does and returns a
    ``RewardHandle`` at once. The trainer then scores the rollouts under the reference and the
    policy meanwhile, if the loss wants that.

    It may have ``sample_evaluation(model, *, items, seed, rank, world)``, which returns the
    completions ``rank``, ``rank + world``, … of an evaluation, and ``judge_evaluation(answers)``,
    which makes an ``Evaluation`` of all of them in order. Several ranks then share the sampling; of
    a task without the two, rank 0 evaluates alone.
    """

    layout: ModalityLayout
    pad_id: int
    train_examples: Sequence[Example]

    @property
    def eos_id(self) -> int | Collection[int]:
        """The id or ids that end an answer. A class attribute is enough."""
        ...

    def load_model(self) -> "PreTrainedModel":
        """Loads the base model, in fp32 and in eval mode."""
        ...

    def demonstrations(
        self, examples: Sequence[Example], rng: random.Random
    ) -> list[Demonstration]:
        """Returns a demonstration for the anchor of each example that has one, in order."""
        ...

    def rewards(self, completions: Sequence[Completion]) -> list[float | None]:
        """Returns one reward per completion on the task's scale, or ``None`` if the judge failed.

        A reward that is not finite counts as missing too.
        """
        ...

    def evaluate(self, model: "PreTrainedModel", *, items: int, seed: int) -> Evaluation:
        """Evaluates the model on ``items`` spoken answers to held-out prompts."""
        ...

    def answer(self, model: "PreTrainedModel", prompt: str, *, seed: int) -> Evaluation:
        """Answers one prompt in text and speech; the answer is the only one of ``samples``."""
        ...


class RewardHandle(Protocol):
    """Rewards that a task is working on.

    It may have ``metrics()``, floats by name, which the trainer logs: their sums over the ranks, of
    names that end in ``_s`` or ``_max`` the largest, and the ratio of ``NAME_sum`` to
    ``NAME_count`` as ``NAME``.
    """

    def result(self) -> list[float | None]:
        """Waits for the rewards, and returns what ``Task.rewards`` returns."""
        ...
