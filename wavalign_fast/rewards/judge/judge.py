"""A judge that works beside the trainer: requests are started now and collected later."""

import asyncio
import concurrent.futures
import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from wavalign_fast.rewards.judge.cache import JudgementCache
from wavalign_fast.rewards.judge.failures import JudgeError
from wavalign_fast.rewards.judge.requests import JudgeRequest
from wavalign_fast.rewards.judge.rubrics import (
    ACOUSTIC,
    HOLISTIC,
    SEMANTIC,
    Rubric,
    own_rubric,
    read_rubric,
)
from wavalign_fast.rewards.judge.tally import Tally
from wavalign_fast.rewards.judge.work import Group, Judgement

if TYPE_CHECKING:
    from wavalign_fast.rewards.judge.options import JudgeOptions
    from wavalign_fast.rewards.judge.sender import Sender

T = TypeVar("T")

logger = logging.getLogger(__name__)

USUAL_KEY = "OPENAI_API_KEY"
WINDOW = 64
"""Judgements over which the share of missing ones is taken, if a step has fewer."""
CAUSES_SHOWN = 3
CLOSE_S = 5.0


class Judge:
    """Asks the judge of ``options``, all requests of a step at once, in a thread of its own.

    Args:
        environ: where the key is looked up; by default the environment.

    Raises:
        JudgeError: no address, no such key, or a package is missing.
        UserError: the rubric cannot be read, or the cache cannot be written.
    """

    def __init__(self, options: "JudgeOptions", environ: Mapping[str, str] | None = None) -> None:
        if options.url is None:
            raise JudgeError("url: nothing given, wanted the address of a judge")
        self.options = options
        self.rubrics = rubrics_of(options)
        self.weights = {
            HOLISTIC: 1.0,
            SEMANTIC: options.semantic_weight,
            ACOUSTIC: options.acoustic_weight,
        }
        parts = urlsplit(options.address)
        self.name = f"judge {parts.scheme}://{parts.netloc}{parts.path}"
        """What errors call it; without the query, which may hold what is nobody's business."""
        self._key = _key(options, os.environ if environ is None else environ)
        self._cache = JudgementCache(options.cache)
        self._recent: deque[bool] = deque(maxlen=WINDOW)
        self._make_sender = _sender_class()  # a missing package shows now
        self._sender: Sender | None = None
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=_run, args=(self._loop,), name="judge", daemon=True).start()
        self._end = weakref.finalize(self, self._loop.call_soon_threadsafe, self._loop.stop)

    def start(
        self, requests: Sequence[JudgeRequest], *, rubrics: Sequence[Rubric] | None = None
    ) -> "Judging":
        """Starts the requests and returns at once.

        Args:
            rubrics: for these requests, in place of those of the options.
        """
        if not self._end.alive:
            raise RuntimeError("the judge is closed, wanted one that is open")
        group = Group(
            list(requests),
            options=self.options,
            rubrics=self.rubrics if rubrics is None else rubrics,
            weights=self.weights,
            cache=self._cache,
        )
        return Judging(self, group, self._soon(self._judged(group)))

    @property
    def response_format(self) -> str:
        """The format that the server answers, or the one to be tried next."""
        return self.options.response_format if self._sender is None else self._sender.format.current

    def close(self) -> None:
        """Gives up what is under way and ends the thread."""
        if self._end.alive:
            with suppress(concurrent.futures.TimeoutError):
                self._soon(self._closed()).result(CLOSE_S)
            self._end()

    def collect(
        self,
        group: Group,
        future: "concurrent.futures.Future[list[Judgement]]",
        deadline_s: float | None,
    ) -> list[Judgement]:
        """Waits for a group; what ``Judging.result`` does."""
        try:
            found = future.result(deadline_s)
        except concurrent.futures.TimeoutError:
            self._loop.call_soon_threadsafe(group.hurry)
            found = future.result()
        except JudgeError as error:
            raise JudgeError(f"{self.name}: {error}") from error
        self._log(group.tally)
        self._check_share(found)
        return found

    def _soon(self, work: Coroutine[Any, Any, T]) -> "concurrent.futures.Future[T]":
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _judged(self, group: Group) -> list[Judgement]:
        if self._sender is None:
            self._sender = self._make_sender(self.options, self._key)
        return await group.judged(self._sender)

    async def _closed(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        if self._sender is not None:
            await self._sender.close()

    def _log(self, tally: Tally) -> None:
        numbers = tally.metrics(self.options.price_in, self.options.price_out)
        shown = ", ".join(f"{name.removeprefix('judge/')} {n:.6g}" for name, n in numbers.items())
        logger.info("%s: %s", self.name, shown)

    def _check_share(self, found: Sequence[Judgement]) -> None:
        """Raises ``JudgeError`` if too large a share of this step, or of the last ones, is lost."""
        self._recent.extend(one.score is None for one in found)
        flags = [one.score is None for one in found]
        flags = flags if len(flags) > WINDOW else list(self._recent)
        lost = [one for one in found if one.score is None]
        if not lost or sum(flags) <= self.options.max_missing * len(flags):
            return
        causes: dict[str, list[str]] = {}
        for one in lost:
            causes.setdefault(str(one.cause), []).append(one.detail)
        most = sorted(causes.items(), key=lambda item: -len(item[1]))[:CAUSES_SHOWN]
        listed = "; ".join(f"{cause} {len(of)}, such as {of[0]}" for cause, of in most)
        raise JudgeError(
            f"{self.name}: {sum(flags)} of the last {len(flags)} scores are missing, wanted a "
            f"share of at most {self.options.max_missing:g} (max_missing): {listed}"
        )


class Judging:
    """Requests that are under way; ``result`` waits for them."""

    def __init__(
        self,
        judge: Judge,
        group: Group,
        future: "concurrent.futures.Future[list[Judgement]]",
    ) -> None:
        self._judge = judge
        self._group = group
        self._future = future
        self._found: list[Judgement] | None = None

    def done(self) -> bool:
        """Whether ``result`` would not wait."""
        return self._future.done()

    def result(self, deadline_s: float | None = None) -> list[Judgement]:
        """Waits for the judgements and returns them in the order of the requests.

        Args:
            deadline_s: most seconds to wait from now on, besides the deadlines of the options.
                What is still under way then is given up and missing (``deadline``).

        Raises:
            JudgeError: the server cannot be asked, or too large a share of scores is missing.
        """
        if self._found is None:
            self._found = self._judge.collect(self._group, self._future, deadline_s)
        return self._found

    def cancel(self) -> None:
        """Gives the requests up."""
        self._future.cancel()

    def metrics(self) -> dict[str, float]:
        """Returns the counts of these requests, complete once ``result`` has returned."""
        options = self._judge.options
        return self._group.tally.metrics(options.price_in, options.price_out)


def _run(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()


def rubrics_of(options: "JudgeOptions") -> list[Rubric]:
    """Returns the rubrics that each reply is judged by.

    Raises:
        UserError: the user's rubric cannot be read.
    """
    axes = (HOLISTIC,) if options.mode == "holistic" else (SEMANTIC, ACOUSTIC)
    if options.rubric is not None:
        return [read_rubric(options.rubric, axes)]
    if options.mode == "two_requests":
        return [own_rubric((axis,)) for axis in axes]
    return [own_rubric(axes)]


def _key(options: "JudgeOptions", environ: Mapping[str, str]) -> str | None:
    """Returns the API key. No message has it, not even a part of it."""
    name = options.key_variable or USUAL_KEY
    key = environ.get(name, "").strip()
    if not key:
        if options.key_variable is not None:
            raise JudgeError(f"key_variable: {name} is not set or empty, wanted an API key in it")
        return None
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise JudgeError(f"the key in {name} has a space or a sign that no key can have")
    return key


def _sender_class() -> "type[Sender]":
    try:
        from wavalign_fast.rewards.judge.sender import Sender
    except ModuleNotFoundError as error:
        raise JudgeError(
            f"{error.name} is not installed; pip install 'wavalign-fast[judge]'"
        ) from error
    return Sender
