"""The work that every side does: a model, prompts, rewards, and how much of them in a step."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from wavalign_fast.data.records import Completion, Demonstration, Evaluation, Example
from wavalign_fast.losses import ModalityLayout
from wavalign_fast.train.task_protocol import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RATE = 1e-6
"""Learning rate: every side samples from nearly the same model to the end."""


class RandomModel:
    """A task over a random model of a realistic vocabulary, where the head costs as much as all
    layers. A reward is the share of even ids, so no group is without an advantage."""

    vocabulary = 32768
    highest_prompt_id = 32000
    shape: Mapping[str, int] = {
        "hidden_size": 512,
        "num_hidden_layers": 8,
        "intermediate_size": 1536,
    }
    layout = ModalityLayout(vocab_size=vocabulary, speech=())
    pad_id, eos_id = 0, 1

    def __init__(self) -> None:
        prompts = (
            tuple(2 + (37 * i + 11 * j) % (self.highest_prompt_id - 1) for j in range(6 + i % 7))
            for i in range(64)
        )
        self.train_examples: Sequence[Example] = [
            Example(id=str(i), prompt="", prompt_ids=ids, reference="")
            for i, ids in enumerate(prompts)
        ]

    def load_model(self) -> "PreTrainedModel":
        from transformers import Qwen2Config, Qwen2ForCausalLM

        torch.manual_seed(0)
        config = Qwen2Config(
            vocab_size=self.vocabulary, num_attention_heads=8, num_key_value_heads=8,
            max_position_embeddings=256, pad_token_id=self.pad_id, eos_token_id=self.eos_id,
            bos_token_id=None, **self.shape,
        )  # fmt: skip
        return Qwen2ForCausalLM(config).eval()

    def rewards(self, completions: Sequence[Completion]) -> list[float | None]:
        return [sum(token % 2 == 0 for token in done.ids) / len(done.ids) for done in completions]

    def demonstrations(
        self, examples: Sequence[Example], rng: random.Random
    ) -> list[Demonstration]:
        raise NotImplementedError("the benchmark has no anchor")

    def evaluate(self, model: "PreTrainedModel", *, items: int, seed: int) -> Evaluation:
        raise NotImplementedError("the benchmark evaluates nothing")

    def answer(self, model: "PreTrainedModel", prompt: str, *, seed: int) -> Evaluation:
        raise NotImplementedError("the benchmark answers nothing")


def spoken_sums() -> Any:
    """The task of the recipe, with the model that ships with the package."""
    from wavalign_fast.recipes.spoken_sums.task import SpokenSums

    return SpokenSums()


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much a step does."""

    name: str
    title: str
    prompts: int
    group: int
    length: int
    """The most new ids of a completion."""
    steps: int
    """Timed steps of a run."""
    make_task: Callable[[], Task]

    @property
    def completions(self) -> int:
        return self.prompts * self.group


SIZES = {
    size.name: size
    for size in (
        Size(
            name="recipe", title="the model of spoken-sums (H 128, 4 layers, V 296)",
            prompts=8, group=8, length=72, steps=8, make_task=spoken_sums,
        ),
        Size(
            name="medium", title="a random Qwen2 (H 512, 8 layers, V 32768)",
            prompts=4, group=4, length=64, steps=2, make_task=RandomModel,
        ),
    )
}  # fmt: skip


class Ready(NamedTuple):
    """A trainer that can start."""

    model: "PreTrainedModel"
    """What it trains."""
    fit: Callable[[], Any]
    """Trains to the end."""


@dataclass
class Recorded:
    """A task that notes what it is asked to reward, and forwards all else.

    Args:
        rewarding: called around each call of ``rewards``, with whether it is over.
    """

    task: Task
    rewarding: Callable[[bool], None] = lambda over: None
    completions: list[list[Completion]] = field(default_factory=list)
    given: list[list[float | None]] = field(default_factory=list)
    """Of each step, its completions and their rewards."""

    def rewards(self, completions: Sequence[Completion]) -> list[float | None]:
        self.rewarding(False)
        found = self.task.rewards(completions)
        self.completions.append(list(completions))
        self.given.append(found)
        self.rewarding(True)
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)
