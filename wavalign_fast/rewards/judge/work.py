"""One group of requests in the judge's event loop: calls, samples, cache, deadlines."""

import asyncio
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from wavalign_fast.rewards.judge.cache import JudgementCache
from wavalign_fast.rewards.judge.failures import JudgeError, MissingScoreError
from wavalign_fast.rewards.judge.requests import Call, JudgeRequest
from wavalign_fast.rewards.judge.rubrics import Rubric
from wavalign_fast.rewards.judge.scores import combined
from wavalign_fast.rewards.judge.tally import Tally

if TYPE_CHECKING:
    from wavalign_fast.rewards.judge.options import JudgeOptions
    from wavalign_fast.rewards.judge.sender import Sender

Answer = tuple[dict[str, float], str] | MissingScoreError
"""The scores of a call and the justification, or why there are none."""

LATE = MissingScoreError("deadline", "no score within the time of the group")


@dataclass(frozen=True)
class Judgement:
    """The scores of one request, or why they are missing."""

    score: float | None
    """The holistic score, or the mean of several by their weights; ``None`` if it is missing."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """The score of each axis, the median of its samples; empty if they are missing."""
    justification: str = ""
    """Of the first sample that is there."""
    cause: str | None = None
    """Why the score is missing, one of the names in docs/judge.md; ``None`` if it is there."""
    detail: str = ""
    """What was seen instead of a score."""


class Group:
    """The requests of one ``Judge.start``.

    Args:
        rubrics: each is asked for by a request of its own.
        weights: of the axes.
    """

    def __init__(
        self,
        requests: Sequence[JudgeRequest],
        *,
        options: "JudgeOptions",
        rubrics: Sequence[Rubric],
        weights: Mapping[str, float],
        cache: JudgementCache,
    ) -> None:
        self.requests = requests
        self.options = options
        self.rubrics = rubrics
        self.weights = weights
        self.cache = cache
        self.tally = Tally(asked=len(requests))
        self._hurry = asyncio.Event()
        self._fatal: JudgeError | None = None
        self._tasks: dict[str, asyncio.Task[Answer]] = {}
        """By the key of the call: what equals another call is sent once."""

    def hurry(self) -> None:
        """Ends the wait: what is still under way is missing. Call it in the event loop."""
        self._hurry.set()

    async def judged(self, sender: "Sender") -> list[Judgement]:
        """Returns the judgement of each request.

        Raises:
            JudgeError: the server cannot be asked.
        """
        keys = [self._start(request, sender) for request in self.requests]
        tasks = list(self._tasks.values())
        hurry = asyncio.ensure_future(self._hurry.wait())
        ends: list[asyncio.Future[Any]] = [asyncio.gather(*tasks, return_exceptions=True), hurry]
        try:
            await asyncio.wait(
                ends,
                timeout=self.options.group_deadline_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            for task in (*tasks, hurry):
                task.cancel()
            await asyncio.wait(ends)
        if self._fatal is not None:
            raise self._fatal
        return [self._judgement(of_request) for of_request in keys]

    def _start(self, request: JudgeRequest, sender: "Sender") -> list[list[str]]:
        """Starts the calls of a request; returns their keys by rubric and sample."""
        options = self.options
        silent = options.audio == "none" or request.wav is not None
        model = options.model if silent else options.text_model
        if model is None:
            return []
        settings = {"temperature": options.temperature, "max_tokens": options.max_tokens}
        keys: list[list[str]] = []
        for rubric in self.rubrics:
            keys.append([])
            for sample in range(options.samples):
                call = Call(request, rubric, model, options.audio, settings | options.body, sample)
                key = call.key(options.address)
                keys[-1].append(key)
                self.tally.calls += 1
                if key in self._tasks:
                    self.tally.cached += 1
                else:
                    self._tasks[key] = asyncio.ensure_future(self._answer(call, key, sender))
        return keys

    async def _answer(self, call: Call, key: str, sender: "Sender") -> Answer:
        if kept := self.cache.read(key, call.rubric):
            self.tally.cached += 1
            return kept
        try:
            scores, justification = await sender.ask(call, self.tally)
        except JudgeError as error:
            self._fatal = error
            self.hurry()
            raise
        except MissingScoreError as error:
            return error
        self.cache.write(key, scores, justification)
        return scores, justification

    def _judgement(self, keys: Sequence[Sequence[str]]) -> Judgement:
        if not keys:
            return self._missing([MissingScoreError("no_audio", "the reply has no sound")])
        scores: dict[str, float] = {}
        reasons: list[str] = []
        for rubric, of_rubric in zip(self.rubrics, keys, strict=True):
            answers = [self._ended(key) for key in of_rubric]
            lost = [answer for answer in answers if isinstance(answer, MissingScoreError)]
            found = [answer for answer in answers if not isinstance(answer, MissingScoreError)]
            # A median of the fewer half would be one of chance.
            if 2 * len(found) <= len(answers):
                return self._missing(lost)
            for axis in rubric.axes:
                values = [of_sample[axis] for of_sample, _ in found]
                scores[axis] = statistics.median(values)
                if len(answers) > 1:
                    spread = max(values) - min(values)
                    self.tally.spread = max(self.tally.spread or 0.0, spread)
            reasons.append(found[0][1])
        return Judgement(combined(scores, self.weights), scores, "\n".join(filter(None, reasons)))

    def _ended(self, key: str) -> Answer:
        task = self._tasks[key]
        return LATE if task.cancelled() else task.result()

    def _missing(self, lost: Sequence[MissingScoreError]) -> Judgement:
        (cause, _), *_ = Counter(error.cause for error in lost).most_common(1)
        self.tally.missing[cause] += 1
        detail = next(error.detail for error in lost if error.cause == cause)
        return Judgement(None, cause=cause, detail=detail)
