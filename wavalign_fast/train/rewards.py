"""A task's rewards as the loss takes them: numbers, and NaN where there is none."""

import logging
import math
import traceback
from collections.abc import Iterable, Mapping, Sequence
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
    """Asks the task for rewards. One that is not finite counts as missing, like ``None``."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.name = type(task).__name__
        self._warned = False

    def __call__(self, completions: Sequence[Completion]) -> Tensor:
        """Rewards [N] float32 of N completions, NaN where a reward is missing.

        Raises:
            UserError: where the task fails, or gives anything but one number or None each.
        """
        given = self._listed(self._ask(completions))
        if len(given) != len(completions):
            raise UserError(
                f"rewards of {self.name}: {len(given)} given for {len(completions)} completions, "
                "wanted one each"
            )
        return torch.tensor(
            [self._number(index, reward) for index, reward in enumerate(given)],
            dtype=torch.float32,
        )

    def _ask(self, completions: Sequence[Completion]) -> Any:
        try:
            return self.task.rewards(completions)
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
                "None where a reward is missing"
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
            logger.warning(
                "rewards of %s: %s given for completion %d; a reward that is not finite is a "
                "missing one, counted as reward/failed",
                self.name,
                _shown(value),
                index,
            )
            self._warned = True
        return MISSING


def _shown(value: Any) -> str:
    # Python refuses to write out an integer of thousands of digits, on its own or in a list.
    text = " ".join((repr(value) if isinstance(value, str) else shown(value)).split())
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"
