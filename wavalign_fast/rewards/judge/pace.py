"""Limits how many requests run at once, and how many start in a minute."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from wavalign_fast.rewards.judge.failures import PassingError


class Pace:
    """A semaphore and a rate limit that all requests to one server share.

    Args:
        concurrency: most requests at once.
        per_minute: most starts in a minute, evenly spaced; ``None`` for no limit.
    """

    def __init__(self, concurrency: int, per_minute: float | None) -> None:
        self._slots = asyncio.Semaphore(concurrency)
        self._interval = 0.0 if per_minute is None else 60.0 / per_minute
        self._next = 0.0
        self._held_until = 0.0

    @asynccontextmanager
    async def turn(self, patience: Callable[[], float]) -> AsyncIterator[None]:
        """Waits until a request may start, and holds its slot until the block ends.

        Args:
            patience: returns the seconds that the request may wait for the server's leave.

        Raises:
            PassingError: the server wants to be left alone for longer.
        """
        clock = asyncio.get_running_loop().time
        async with self._slots:
            start = max(clock(), self._next)
            self._next = start + self._interval
            await asyncio.sleep(start - clock())
            held = self._held_until - clock()
            if held > 0:
                if held > patience():
                    raise PassingError("rate_limit", f"the server asks to wait for {held:.0f} s")
                await asyncio.sleep(held)
            yield

    def hold(self, seconds: float) -> None:
        """Lets nothing start for these seconds: the server wants to be left alone."""
        until = asyncio.get_running_loop().time() + seconds
        self._held_until = max(self._held_until, until)
        self._next = max(self._next, until)
