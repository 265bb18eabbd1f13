"""Asks the user's reward function about completions, and bounds what its failures may cost."""

import logging
from collections.abc import Sequence
from typing import Any

from wavalign_fast.data.records import Completion, Example
from wavalign_fast.errors import UserError, naming, shown
from wavalign_fast.recipes.dialogue.options import Options
from wavalign_fast.recipes.dialogue.tokens import Tokens
from wavalign_fast.rewards import RewardError, RewardFunction

logger = logging.getLogger(__name__)

MOST_FAILURES = 5
"""Failed calls in a row after which the run stops: a judge that is down gives no more rewards."""
LOWEST, HIGHEST = 1.0, 5.0
"""The scale of the rewards in training, for which the defaults of ``loss.gate`` are made."""


class Rewards:
    """The rewards of completions on the scale of the user's function."""

    def __init__(self, options: Options, tokens: Tokens) -> None:
        self.tokens = tokens
        self.range = None if options.reward_range is None else tuple(options.reward_range)
        if self.range is not None and not self.range[0] < self.range[1]:
            raise UserError(
                f"task.reward_range: {list(self.range)} given, wanted [lowest, highest]"
            )
        self.may_fail = options.on_reward_error == "missing"
        self.failures = 0
        self.function: RewardFunction | None = None
        if options.reward is not None:
            with naming("task.reward"):
                self.function = RewardFunction(
                    options.reward,
                    timeout_s=options.reward_timeout_s,
                    arguments=options.reward_arguments,
                )

    @property
    def scale(self) -> str:
        """What a reward in training means, for the report."""
        name = "the reward function" if self.function is None else self.function.name
        if self.range is None:
            return f"as {name} gives it"
        low, high = self.range
        return f"{LOWEST:g} to {HIGHEST:g}, for {low:g} to {high:g} of {name}"

    def try_out(self, example: Example) -> None:
        """Calls the function once, on the example's own answer or an empty one.

        Raises:
            UserError: the function cannot be imported, fails, or gives no usable reward.
        """
        if self.function is None:
            return
        with naming("task.reward"):
            self.function.load()
        ids = example.answer_ids or (self.tokens.end_id,)
        self([Completion(example=example, ids=ids, ended=True)])

    def __call__(self, completions: Sequence[Completion]) -> list[float | None]:
        """Returns one reward per completion, ``None`` for a missing one.

        Raises:
            UserError: the function failed and the options do not allow that, or a reward is outside
                ``task.reward_range``.
        """
        assert self.function is not None  # checked at the start, unless nobody asks
        try:
            rewards = self.function([self.described(done) for done in completions])
        except RewardError as error:
            self.failures += 1
            if not self.may_fail or self.failures == MOST_FAILURES:
                times = f"; {self.failures} calls in a row failed" if self.may_fail else ""
                raise UserError(f"task.reward: {error}{times}") from error
            # An error, not a warning: each rank asks for itself, and all but one hide warnings.
            logger.error("task.reward: %s; %d rewards are missing", error, len(completions))
            return [None] * len(completions)
        self.failures = 0
        for done, reward in zip(completions, rewards, strict=True):
            self._check(done, reward)
        return rewards

    def scaled(self, reward: float | None) -> float | None:
        """Maps a reward from ``task.reward_range`` to the scale of training."""
        if reward is None or self.range is None:
            return reward
        low, high = self.range
        return LOWEST + (HIGHEST - LOWEST) * (reward - low) / (high - low)

    def described(self, done: Completion) -> dict[str, Any]:
        """Returns what the reward function gets of a completion; docs/own_model.md lists it."""
        example, ids = done.example, list(done.ids)
        return {
            "id": example.id,
            "prompt": example.prompt,
            "prompt_ids": list(example.prompt_ids),
            "reference": example.reference,
            "text": self.tokens.text(ids),
            "ids": ids,
            "speech_ids": self.tokens.speech(ids),
            "ended": done.ended,
            "record": dict(example.record),
        }

    def _check(self, done: Completion, reward: float | None) -> None:
        if reward is None or self.range is None or reward != reward:
            return
        low, high = self.range
        if not low <= reward <= high:
            raise UserError(
                f"task.reward: {shown(reward)} given for an answer to {shown(done.example.id)}, "
                f"wanted {low:g} to {high:g}, task.reward_range"
            )
