"""Turns a task's rewards into the tensor that the loss takes, with NaN for a missing reward."""

import logging
import math
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wavalign_fast.data.records import Completion
from wavalign_fast.errors import UserError, described, shown
from wavalign_fast.train.task_protocol import Task

logger = logging.getLogger(__name__)

MISSING = math.nan
LARGEST = torch.finfo(torch.float32).max


class Rewarder:
    """Asks the task for rewards. A reward that is not finite counts as missing, like ``None``."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.name = type(task).__name__
        self._warned = False

    def __call__(self, completions: Sequence[Completion]) -> Tensor:
        """Returns the rewards of N completions, float32 [N], with NaN for a missing reward.

        Raises:
            UserError: the task fails, or does not return one number or ``None`` per completion.
        """
        return self.start(completions).result()

    def start(self, completions: Sequence[Completion]) -> "StartedRewards":
        """Lets the task start on the rewards; one without ``start_rewards`` computes them now.

        Raises:
            UserError: as for a call.
        """
        start = getattr(self.task, "start_rewards", None)
        if start is None:
            rewards = self._table(self._asked(self.task.rewards, completions), len(completions))
            return StartedRewards(lambda: rewards, dict)
        handle = self._asked(start, completions)
        return StartedRewards(
            lambda: self._table(self._asked(lambda: handle.result()), len(completions)),
            getattr(handle, "metrics", dict),
        )

    def _table(self, given: Any, count: int) -> Tensor:
        listed = self._listed(given)
        if len(listed) != count:
            raise UserError(
                f"rewards of {self.name}: {len(listed)} given for {count} completions, "
                "wanted one each"
            )
        return torch.tensor(
            [self._number(index, reward) for index, reward in enumerate(listed)],
            dtype=torch.float32,
        )

    def _asked(self, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except (UserError, ModuleNotFoundError):
            raise
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            raise UserError(
                f"rewards of {self.name} raised {described(error)} "
                f"({Path(frame.filename).name}, line {frame.lineno}, in {frame.name})"
            ) from error

    def _listed(self, given: Any) -> list[Any]:
        if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
            raise UserError(
                f"rewards of {self.name}: {_shown(given)} given, wanted a list of numbers, "
                "None for a missing reward"
            )
        return list(given)

    def _number(self, index: int, reward: Any) -> float:
        if reward is None:
            return MISSING
        value = reward.item() if getattr(reward, "ndim", None) == 0 else reward
        if not isinstance(value, Real):
            raise UserError(
                f"rewards of {self.name}: {_shown(reward)} given for completion {index}, wanted a "
                "number or None"
            )
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if abs(number) <= LARGEST:
            return number
        if not self._warned:
            # An error, for only warnings of the main rank are shown, and each rank judges its own.
            logger.error(
                "rewards of %s: %s given for completion %d; a reward that is not finite is a "
                "missing one, counted as reward/failed",
                self.name,
                _shown(value),
                index,
            )
            self._warned = True
        return MISSING


class StartedRewards:
    """The rewards of some completions, which the task may still be working on.

    Args:
        wait: returns the rewards, float32 [N].
        metrics: returns what the task tells about them, once they are there.
    """

    def __init__(
        self, wait: Callable[[], Tensor], metrics: Callable[[], Mapping[str, float]]
    ) -> None:
        self._wait = wait
        self.metrics = metrics

    def result(self) -> Tensor:
        """Waits for the rewards and returns them, float32 [N], with NaN for a missing one.

        Raises:
            UserError: the task fails, or does not return one number or ``None`` per completion.
        """
        return self._wait()


def _shown(value: Any) -> str:
    # ``shown`` copes with integers of thousands of digits, which Python refuses to write out.
    text = " ".join((repr(value) if isinstance(value, str) else shown(value)).split())
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"
