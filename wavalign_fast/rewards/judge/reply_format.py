"""Finds out once how the server can be asked for scores."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from wavalign_fast.rewards.judge.rubrics import FORMATS

PROBE_WAIT_S = 10.0
"""How long requests wait for the one that finds the format, before they go along with it."""


class ReplyFormat:
    """The format that replies are asked for: the first of ``FORMATS`` that the server answers.

    Args:
        wanted: ``auto``, or the one format to use.
    """

    def __init__(self, wanted: str) -> None:
        self._choices = FORMATS if wanted == "auto" else (wanted,)
        self._place = 0
        self._asking = asyncio.Lock()
        self.known = wanted != "auto"

    @property
    def current(self) -> str:
        """One of ``FORMATS``."""
        return self._choices[self._place]

    def refused(self, name: str) -> bool:
        """Takes note that a request for ``name`` was refused; returns whether to ask for another.

        If every format is refused, it was not the format that was wrong, and nothing is learnt.
        """
        if self.known:
            return name != self.current
        if name == self._choices[-1]:
            self._place = 0
            return False
        self._place = max(self._place, self._choices.index(name) + 1)
        return True

    def worked(self, name: str) -> None:
        """Remembers the format of a request that was answered."""
        if not self.known:
            self._place = self._choices.index(name)
            self.known = True

    @asynccontextmanager
    async def asked_by_one(self) -> AsyncIterator[None]:
        """Lets one request at a time through while the format is unknown."""
        holds = False
        if not self.known:
            try:
                holds = await asyncio.wait_for(self._asking.acquire(), PROBE_WAIT_S)
            except asyncio.TimeoutError:  # the one that asks hangs
                holds = False
        try:
            if holds and self.known:
                self._asking.release()
                holds = False
            yield
        finally:
            if holds:
                self._asking.release()
