"""``Dialogue``: a task of the user's own model, data and reward function."""

import functools
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wavalign_fast.data.records import (
    Completion,
    Demonstration,
    Evaluation,
    Example,
    Preference,
)
from wavalign_fast.errors import UserError, naming
from wavalign_fast.models import load_checkpoint
from wavalign_fast.recipes.answers import answer_metrics, sample_answers
from wavalign_fast.recipes.dialogue.evaluate import evaluate, shown_sample
from wavalign_fast.recipes.dialogue.options import Options
from wavalign_fast.recipes.dialogue.read import ExampleReader, read_examples
from wavalign_fast.recipes.dialogue.rewards import Rewards
from wavalign_fast.recipes.dialogue.tokens import load_tokens
from wavalign_fast.recipes.examples import check_answered, demonstrations_of, preferences_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Dialogue:
    """Answers to the user's own prompts; keywords are ``FROM_RUN`` and the fields of ``Options``.

    ``train_examples`` and ``held_out`` are read at their first use, so that a run can be talked to
    where its data is not.
    """

    def __init__(
        self,
        *,
        model_path: str | None,
        prompts: int,
        group_size: int,
        max_new_tokens: int,
        needs_rewards: bool,
        needs_anchor: bool,
        eval_items: int,
        timeout_s: float,
        **options: Any,
    ) -> None:
        self.options = Options(**options)
        if model_path is None:
            raise UserError("model.path: nothing given, wanted the directory of a model")
        self.directory = Path(model_path).expanduser()
        self.rows = prompts * group_size
        self.max_new_tokens = max_new_tokens
        self.needs_anchor = needs_anchor
        if needs_rewards and self.options.reward is None:
            raise UserError("task.reward: nothing given, wanted FILE.py:FUNCTION")
        if eval_items and self.options.eval_data is None:
            raise UserError(
                "task.eval_data: nothing given, wanted a JSONL file, or train.eval_items=0 "
                f"instead of {eval_items}"
            )
        if self.options.reward is not None:
            _check_that_ranks_wait(self.options.reward_timeout_s, timeout_s)
        self.tokens = load_tokens(self.directory, self.options)
        self.layout = self.tokens.layout
        self.pad_id = self.tokens.pad_id
        self.eos_id = self.tokens.ends
        self._reader = ExampleReader(self.tokens, self.options, max_new_tokens=max_new_tokens)
        self._rewards = Rewards(self.options, self.tokens)
        self.reward_scale = self._rewards.scale

    @functools.cached_property
    def train_examples(self) -> tuple[Example, ...]:
        """Reads the training data and tries the reward function on the first record."""
        with naming("task.data"):
            examples = read_examples(self.options.data, self._reader)
        if self.needs_anchor:
            check_answered(examples, self.options.data)
        self._rewards.try_out(examples[0])
        return examples

    @property
    def preferences(self) -> list[Preference]:
        """The pairs of those records that have a rejected answer."""
        return preferences_of(self.train_examples)

    @functools.cached_property
    def held_out(self) -> tuple[Example, ...]:
        """Reads the data of evaluations."""
        assert self.options.eval_data is not None  # checked at the start
        with naming("task.eval_data"):
            return read_examples(self.options.eval_data, self._reader)

    def load_model(self) -> "PreTrainedModel":
        """Loads the model of ``model.path``, in fp32 and in eval mode."""
        import torch

        return load_checkpoint(self.directory, dtype=torch.float32).eval()

    def demonstrations(
        self, examples: Sequence[Example], rng: random.Random
    ) -> list[Demonstration]:
        """Returns the answers of those examples that have one."""
        return demonstrations_of(examples)

    def rewards(self, completions: Sequence[Completion]) -> list[float | None]:
        """Returns the function's rewards, mapped from ``task.reward_range`` to 1 to 5."""
        return [self._rewards.scaled(reward) for reward in self._rewards(completions)]

    def evaluate(self, model: "PreTrainedModel", *, items: int, seed: int) -> Evaluation:
        """Evaluates the held-out records; see ``dialogue.evaluate.evaluate``."""
        return evaluate(
            model,
            self.held_out,
            tokens=self.tokens,
            rewards=self._rewards,
            items=items,
            seed=seed,
            temperature=self.options.eval_temperature,
            max_new_tokens=self.max_new_tokens,
            rows=self.rows,
        )

    def answer(self, model: "PreTrainedModel", prompt: str, *, seed: int) -> Evaluation:
        """Samples one answer to a prompt, at the temperature of evaluations."""
        example = self._reader.example({self._reader.names["prompt"]: prompt}, "say")
        (done,) = sample_answers(
            model,
            [example],
            self.tokens,
            temperature=self.options.eval_temperature,
            max_new_tokens=self.max_new_tokens,
            rows=1,
            seed=seed,
        )
        return Evaluation(
            metrics=answer_metrics([done], self.tokens),
            samples=[shown_sample(done, self.tokens, None)],
        )


def _check_that_ranks_wait(reward_timeout_s: float, timeout_s: float) -> None:
    """Raises ``UserError`` if other ranks give up before a call of the reward function does.

    They wait for its rank meanwhile, and would end the run without naming the function.
    """
    from torch import distributed

    several = distributed.is_available() and distributed.is_initialized()
    if several and distributed.get_world_size() > 1 and reward_timeout_s >= timeout_s:
        raise UserError(
            f"task.reward_timeout_s: {reward_timeout_s:g} given, wanted less than {timeout_s:g}, "
            "the seconds that other ranks wait (parallel.timeout_s)"
        )


TASK = Dialogue
