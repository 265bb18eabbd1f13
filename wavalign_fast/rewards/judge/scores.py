"""Reads the scores in what the judge's model wrote. A score is found or missing, never guessed."""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from wavalign_fast.errors import shown
from wavalign_fast.rewards.judge.failures import MissingScoreError
from wavalign_fast.rewards.judge.rubrics import Rubric, tag_names

NUMBER = re.compile(r"\d{1,6}(\.\d{1,6})?")
JUSTIFICATION = re.compile(r"<justification>(.*?)</justification>", re.DOTALL | re.IGNORECASE)
MOST_OBJECTS = 100


class _Twice(list[Any]):
    """The different values that one key of a JSON object has."""


def read_scores(content: str, rubric: Rubric, *, told: str) -> tuple[dict[str, float], str]:
    """Returns the score of each axis, and the justification, ``""`` if there is none.

    Scores are values of a JSON object's own keys, or tags outside of JSON objects. A justification
    has no say, whatever it quotes. What repeats the system message word for word is its example.

    Args:
        told: the system message.

    Raises:
        MissingScoreError: a score is absent, no whole or half number in the rubric's range, or
            there are several that differ.
    """
    reason = JUSTIFICATION.search(content)
    rest = JUSTIFICATION.sub("", content)
    objects: list[tuple[Any, str]] = []
    for value, source in _objects(rest):
        rest = rest.replace(source, "")
        objects.append((value, source))
    scores = {}
    for axis in rubric.axes:
        found = [(value[axis], source) for value, source in objects if axis in value]
        names = "|".join(map(re.escape, tag_names(axis)))
        tags = re.finditer(rf"<({names})>(.*?)</\1>", rest, re.DOTALL | re.IGNORECASE)
        found += [(match[2], match[0]) for match in tags]
        own = [value for value, source in found if source not in told]
        scores[axis] = _agreed(axis, own or [value for value, _ in found], rubric)
    texts = [value.get("justification") for value, _ in objects] + [reason and reason[1].strip()]
    return scores, next((text for text in texts if isinstance(text, str)), "")


def _objects(content: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Yields the JSON objects of a text and their source; not those inside other objects."""
    decoder = json.JSONDecoder(object_pairs_hook=_object)
    place = content.find("{")
    for _ in range(MOST_OBJECTS):
        if place < 0:
            return
        try:
            value, end = decoder.raw_decode(content, place)
        except (ValueError, RecursionError):
            end = place + 1
        else:
            if isinstance(value, dict):
                yield value, content[place:end]
        place = content.find("{", end)


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Makes an object in which a key with several different values has all of them."""
    made: dict[str, Any] = {}
    for key, value in pairs:
        before = made.get(key, value)
        made[key] = value if before == value else _Twice([before, value])
    return made


def _agreed(axis: str, values: Sequence[Any], rubric: Rubric) -> float:
    if not values:
        raise MissingScoreError("no_score", f"the reply has no {axis}")
    scores = {_score(axis, value, rubric) for value in values}
    if len(scores) > 1:
        several = ", ".join(f"{score:g}" for score in sorted(scores))
        raise MissingScoreError("invalid_score", f"{axis} is {several}, wanted one")
    return scores.pop()


def _score(axis: str, value: Any, rubric: Rubric) -> float:
    text = value.strip() if isinstance(value, str) else ""
    number = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        number = float(value) if abs(value) < 1e9 else math.nan  # a huge int has no float
    elif NUMBER.fullmatch(text):
        number = float(text)
    if not (rubric.low <= number <= rubric.high and (2 * number).is_integer()):
        raise MissingScoreError(
            "invalid_score",
            f"{axis} is {shown(value)}, wanted a whole or half number from {rubric.low:g} to "
            f"{rubric.high:g}",
        )
    return number


def combined(scores: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """Returns the mean of the scores by their weights, which is on the scale of the scores."""
    total = sum(weights[axis] for axis in scores)
    return sum(weights[axis] * score for axis, score in scores.items()) / total
