"""``Dialogue``: a task of the user's own model, data and reward function."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wavalign_fast.data.records import (
    Completion,
    Evaluation,
    Example,
)
from wavalign_fast.errors import UserError
from wavalign_fast.recipes.answers import answer_metrics
from wavalign_fast.recipes.dialogue.evaluate import judged, shown_sample
from wavalign_fast.recipes.dialogue.options import Options
from wavalign_fast.recipes.dialogue.read import ExampleReader, read_examples
from wavalign_fast.recipes.dialogue.rewards import Rewards
from wavalign_fast.recipes.dialogue.tokens import Tokens, load_tokens
from wavalign_fast.recipes.own_model import OwnModelTask, from_run

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Dialogue(OwnModelTask):
    """Answers to the user's own prompts; keywords are ``FROM_RUN`` and the fields of ``Options``.

    Raises:
        UserError: a value of the options cannot be used, or one is missing.
    """

    def __init__(self, **given: Any) -> None:
        run, options = from_run(given)
        self.options = Options(**options)
        super().__init__(self.options, run)
        if run.needs_rewards and self.options.reward is None:
            raise UserError("task.reward: nothing given, wanted FILE.py:FUNCTION")
        if self.options.reward is not None:
            _check_that_ranks_wait(self.options.reward_timeout_s, run.timeout_s)
        self.tokens: Tokens = load_tokens(self.directory, self.options)
        self.layout = self.tokens.layout
        self.pad_id = self.tokens.pad_id
        self.eos_id = self.tokens.ends
        self._reader = ExampleReader(self.tokens, self.options, max_new_tokens=run.max_new_tokens)
        self._rewards = Rewards(self.options, self.tokens)
        self.reward_scale = self._rewards.scale

    def _read(self, data: str | Path) -> tuple[Example, ...]:
        return read_examples(data, self._reader)

    @functools.cached_property
    def train_examples(self) -> tuple[Example, ...]:
        """Reads the training data and tries the reward function on the first record."""
        examples = super().train_examples
        self._rewards.try_out(examples[0])
        return examples

    def rewards(self, completions: Sequence[Completion]) -> list[float | None]:
        """Returns the function's rewards, mapped from ``task.reward_range`` to 1 to 5."""
        return [self._rewards.scaled(reward) for reward in self._rewards(completions)]

    def judge_evaluation(self, answers: Sequence[Completion]) -> Evaluation:
        """Rewards the answers by the function."""
        return judged(answers, tokens=self.tokens, rewards=self._rewards, rows=self.rows)

    def answer(self, model: "PreTrainedModel", prompt: str, *, seed: int) -> Evaluation:
        """Samples one answer to a prompt, at the temperature of evaluations."""
        example = self._reader.example({self._reader.names["prompt"]: prompt}, "say")
        (done,) = self._sampled(model, [example], rows=1, seed=seed)
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
