"""Rewards speech that says what the text says: by the word error rate of a recogniser."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from wavalign_fast.data.words import word_errors, words
from wavalign_fast.errors import described
from wavalign_fast.speech.channels import to_mono

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

Recogniser = Callable[["Tensor", int], str]
"""Returns the words in a wave, float32 [N] of the given rate in Hz."""


class SpokenWords:
    """1 − the word error rate of what is heard against the answer's own text, not below 0.

    An answer without words or without sound gets 0: it says nothing, and would be without errors.
    Where the recogniser fails the reward is missing.
    """

    def __init__(self, recogniser: Recogniser) -> None:
        self.recogniser = recogniser

    def __call__(self, answers: Sequence[Mapping[str, Any]]) -> list[float | None]:
        """Returns a reward from 0 to 1 for each answer, ``None`` if it is missing."""
        return [self._one(answer) for answer in answers]

    def _one(self, answer: Mapping[str, Any]) -> float | None:
        wanted, wave = words(answer["text"]), answer.get("wave")
        if not wanted or wave is None or wave.shape[-1] == 0:
            return 0.0
        try:
            heard = self.recogniser(to_mono(wave), answer["sample_rate"])
            if not isinstance(heard, str):
                raise TypeError(f"{type(heard).__name__} returned, wanted text")
        except Exception as error:  # the recogniser is the user's
            # An error, for only warnings of the main rank are shown, and each rank hears its own.
            logger.error("answer %s is not heard: %s", answer.get("id"), described(error))
            return None
        return max(0.0, 1.0 - word_errors(wanted, words(heard)) / len(wanted))
