"""Rewards for the form of an answer: its length, and whether it ended."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from wavalign_fast.data.words import words
from wavalign_fast.errors import UserError

UNITS = ("words", "characters", "ids", "speech_ids", "seconds")

Answers = Sequence[Mapping[str, Any]]


class Length:
    """1 for a length from ``least`` to ``most``, falling to 0 within ``slope`` beyond.

    Args:
        unit: one of ``UNITS``; seconds are those of the sound, 0 without one.
        slope: in the unit; 0 falls at once.

    Raises:
        UserError: ``least`` is above ``most``.
    """

    def __init__(
        self, *, unit: str = "words", least: float = 0.0, most: float = math.inf, slope: float = 0.0
    ) -> None:
        if least > most:
            raise UserError(f"least: {least:g} given, wanted at most most, {most:g}")
        self.unit = unit
        self.least = least
        self.most = most
        self.slope = slope

    def __call__(self, answers: Answers) -> list[float | None]:
        """Returns a reward from 0 to 1 for each answer."""
        return [self._one(length_of(answer, self.unit)) for answer in answers]

    def _one(self, length: float) -> float:
        beyond = max(self.least - length, length - self.most, 0.0)
        if beyond == 0.0:
            return 1.0
        return max(0.0, 1.0 - beyond / self.slope) if self.slope else 0.0


def length_of(answer: Mapping[str, Any], unit: str) -> float:
    """Returns the length of an answer in one of ``UNITS``."""
    if unit == "seconds":
        wave = answer.get("wave")
        return 0.0 if wave is None else wave.shape[-1] / answer["sample_rate"]
    if unit == "words":
        return float(len(words(answer["text"])))
    return float(len(answer["text" if unit == "characters" else unit]))


class Ended:
    """1 for an answer that ended by itself, 0 for one that was cut off."""

    def __call__(self, answers: Answers) -> list[float | None]:
        """Returns 1 or 0 for each answer."""
        return [float(answer["ended"]) for answer in answers]
