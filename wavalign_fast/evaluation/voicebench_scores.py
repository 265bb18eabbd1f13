"""Reads the judgements in files of VoiceBench's harness."""

import re
import statistics
from typing import Any

from wavalign_fast.errors import shown

RATING = re.compile(r"\[\[(\d+)\]\]")
VERDICTS = {"yes": 1.0, "no": 0.0}


def read_scores(value: Any) -> float:
    """Returns the mean of ratings, texts such as ``"4"``, or the majority of Yes and No.

    Raises:
        ValueError: there are none, or a text is neither.
    """
    if not isinstance(value, list) or not value or not all(isinstance(one, str) for one in value):
        raise ValueError(f"score is {shown(value)}, wanted a list of texts")
    verdicts = [VERDICTS.get(one.strip().strip(".").lower()) for one in value]
    if None not in verdicts:
        return float(sum(map(bool, verdicts)) * 2 > len(verdicts))
    return statistics.fmean(map(_rating, value))


def _rating(text: str) -> float:
    found = RATING.search(text)
    try:
        number = float(found[1] if found else text)
    except ValueError:
        number = 0.0
    if not 1 <= number <= 5:
        raise ValueError(f"score has {shown(text)}, wanted a number from 1 to 5, Yes or No")
    return number
