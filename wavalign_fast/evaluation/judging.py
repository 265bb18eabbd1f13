"""The judged scores: a small protocol for judges, and the stage that keeps what they said."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from wavalign_fast.errors import one_line
from wavalign_fast.evaluation.answering import Response
from wavalign_fast.evaluation.prompts import RATED, SPEECH_TASKS, Prompt, digest, file_digest
from wavalign_fast.evaluation.stages import StageFile
from wavalign_fast.rewards.function import RewardError, RewardFunction

logger = logging.getLogger(__name__)


class Question(NamedTuple):
    """An answer to be judged."""

    prompt: Prompt
    response: Response
    wav: Path | None
    """Its speech; judges of ``SPEECH_TASKS`` score that, the others its text."""

    @property
    def scale(self) -> tuple[float, float]:
        """The lowest and the highest score."""
        return scale_of(self.prompt.task)


class Judged(NamedTuple):
    """One judgement: a score, or the cause for which it is missing."""

    score: float | None
    cause: str | None = None
    more: Mapping[str, Any] = {}
    """What else is kept: the justification, latency, tokens."""


class Judge(Protocol):
    """Scores answers. A failure is a missing score with its cause, never a number."""

    @property
    def at_once(self) -> int:
        """How many questions it takes in one call."""

    def __call__(self, questions: Sequence[Question]) -> Iterable[tuple[int, Judged]]:
        """Yields the place of a question and its judgement, in any order."""


def scale_of(task: str) -> tuple[float, float]:
    """Returns the lowest and the highest score of a task."""
    return (1.0, 5.0) if task in RATED else (0.0, 1.0)


def key_of(question: Question) -> str:
    """Returns a digest of all that a judge gets to see."""
    sound = None
    if question.wav is not None and question.prompt.task in SPEECH_TASKS:
        sound = file_digest(question.wav)
    return digest([question.prompt.scored_by, question.response.text, sound])


def judged(judge: Judge, questions: Sequence[Question], file: StageFile) -> Iterator[int]:
    """Asks for what the file does not have yet; yields how many judgements came, call by call.

    Each judgement is written as it comes. Missing ones are asked for again by a later call.
    """
    known = file.read()
    wanted = [
        question
        for question in questions
        if known.get((question.prompt.id, key_of(question)), {}).get("score") is None
    ]
    for start in range(0, len(wanted), judge.at_once):
        asked = wanted[start : start + judge.at_once]
        for place, given in judge(asked):
            checked = in_scale(given, asked[place].scale)
            file.append([_line(asked[place], checked)])
            yield 1


def in_scale(given: Judged, scale: tuple[float, float]) -> Judged:
    """Returns a judgement whose score is in the scale; another score makes it a missing one."""
    low, high = scale
    if given.score is None or low <= given.score <= high:  # NaN is in no scale
        return given
    return Judged(None, f"score {given.score:g} is outside {low:g} to {high:g}", given.more)


def _line(question: Question, given: Judged) -> dict[str, Any]:
    return {
        "id": question.prompt.id,
        "key": key_of(question),
        "score": given.score,
        "cause": given.cause,
        **given.more,
    }


class FunctionJudge:
    """The user's function, ``FILE.py:FUNCTION``; called as the reward function of a run is.

    It gets a list of answers, dicts with ``id``, ``task``, ``category``, ``language``, ``prompt``,
    ``messages``, ``references``, ``rubric``, ``text`` and ``wav`` (a path, or ``None``). It returns
    one score each on the scale of the task, ``None`` for a missing one.
    """

    at_once = 16

    def __init__(self, name: str, *, timeout_s: float) -> None:
        self.function = RewardFunction(name, timeout_s=timeout_s)

    def load(self) -> None:
        """Imports the function, so that a mistake in its name shows before work is done."""
        self.function.load()

    def settings(self) -> dict[str, Any]:
        """Returns what the scores depend on."""
        return {"--judge": self.function.name}

    def __call__(self, questions: Sequence[Question]) -> Iterator[tuple[int, Judged]]:
        """Calls the function once for all questions."""
        try:
            scores = self.function([_as_answer(question) for question in questions])
            cause = "the function returned None"
        except RewardError as error:
            scores, cause = [None] * len(questions), one_line(error)
            logger.warning("%s; %d judgements are missing", cause, len(questions))
        for place, score in enumerate(scores):
            yield place, Judged(score, cause if score is None else None)

    def close(self) -> None:
        """Ends the function's process."""
        self.function.close()


def _as_answer(question: Question) -> dict[str, Any]:
    prompt = question.prompt
    return {
        "id": prompt.id,
        "task": prompt.task,
        "category": prompt.category,
        "language": prompt.language,
        "prompt": prompt.question,
        "messages": [{"role": role, "content": content} for role, content in prompt.messages],
        "references": list(prompt.references),
        "rubric": prompt.rubric,
        "text": question.response.text,
        "wav": None if question.wav is None else str(question.wav),
    }
