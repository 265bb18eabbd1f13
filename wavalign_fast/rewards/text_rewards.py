"""Rewards that compare an answer's text with its reference: 1 if it is right, 0 if not.

All take answers as docs/own_model.md describes them, and return ``None`` where there is no
reference to compare with.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from wavalign_fast.data.words import contains, words
from wavalign_fast.errors import UserError, shown

Answers = Sequence[Mapping[str, Any]]

NUMBER = re.compile(
    r"(?<![\w.])[-−+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+|(?<=\d))(?:[eE][-+]?\d+)?"
)


def reference_of(answer: Mapping[str, Any], key: str) -> str | None:
    """Returns the text at ``key`` of the answer or of its record, ``None`` if there is none."""
    found = answer.get(key)
    if not found:
        found = (answer.get("record") or {}).get(key)
    if found is None or isinstance(found, bool) or not isinstance(found, str | int | float):
        return None
    return str(found).strip() or None


class ExactText:
    """Whether the words of the text are those of the reference, without case and punctuation.

    Args:
        reference: key of the reference, in the answer or in its record.
        part: the reference's words somewhere in the text are enough.
    """

    def __init__(self, *, reference: str = "reference", part: bool = False) -> None:
        self.reference = reference
        self.part = part

    def __call__(self, answers: Answers) -> list[float | None]:
        """Returns 1, 0 or ``None`` for each answer."""
        return [self._one(answer) for answer in answers]

    def _one(self, answer: Mapping[str, Any]) -> float | None:
        reference = reference_of(answer, self.reference)
        wanted = words(reference or "")
        if not wanted:
            return None
        said = words(answer["text"])
        return float(contains(said, wanted) if self.part else said == wanted)


class NumericText:
    """Whether a number of the text is the number of the reference.

    Args:
        reference: key of the reference, in the answer or in its record; its last number counts.
        which: ``last`` or ``first`` number of the text.
        tolerance: largest relative difference.
    """

    def __init__(
        self, *, reference: str = "reference", which: str = "last", tolerance: float = 1e-6
    ) -> None:
        self.reference = reference
        self.place = {"last": -1, "first": 0}[which]
        self.tolerance = tolerance

    def __call__(self, answers: Answers) -> list[float | None]:
        """Returns 1, 0 or ``None`` for each answer; a text without a number is wrong."""
        return [self._one(answer) for answer in answers]

    def _one(self, answer: Mapping[str, Any]) -> float | None:
        wanted = numbers(reference_of(answer, self.reference) or "")
        if not wanted:
            return None
        found = numbers(answer["text"])
        if not found:
            return 0.0
        return float(math.isclose(found[self.place], wanted[-1], rel_tol=self.tolerance))


def numbers(text: str) -> list[float]:
    """Returns the numbers in a text: ``"-1,200.5 or 3e2" → [-1200.5, 300.0]``."""
    found = [match[0].replace(",", "").replace("−", "-") for match in NUMBER.finditer(text)]
    return [float(number) for number in found]


class PatternText:
    """Whether a regular expression is found in the text.

    Args:
        pattern: in Python's syntax. With a reference its first group, or all of it, must have the
            reference's words.
        reference: key of the reference; ``None``: finding the pattern is enough.
        found: ``False``: the pattern must not be found.

    Raises:
        UserError: ``pattern`` is no regular expression, or ``found`` is false with a reference.
    """

    def __init__(self, pattern: str, *, reference: str | None = None, found: bool = True) -> None:
        try:
            self.pattern = re.compile(pattern)
        except re.error as error:
            raise UserError(f"pattern: {shown(pattern)} given, {error}") from error
        if reference is not None and not found:
            raise UserError("reference: given with found: false, wanted one of them")
        self.reference = reference
        self.found = found

    def __call__(self, answers: Answers) -> list[float | None]:
        """Returns 1, 0 or ``None`` for each answer."""
        return [self._one(answer) for answer in answers]

    def _one(self, answer: Mapping[str, Any]) -> float | None:
        match = self.pattern.search(answer["text"])
        if self.reference is None:
            return float((match is not None) == self.found)
        wanted = words(reference_of(answer, self.reference) or "")
        if not wanted:
            return None
        said = (match[1] if self.pattern.groups else match[0]) if match else ""
        return float(words(said or "") == wanted)
