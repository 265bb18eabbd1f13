"""The judge: what a recogniser hears in many answers, here or in worker processes."""

import logging
from collections.abc import Sequence

import numpy as np

from wavalign_fast.recipes.spoken_sums.judge_workers import hear_in_workers
from wavalign_fast.recipes.spoken_sums.recogniser import Recogniser, check_recogniser, hear_each

logger = logging.getLogger(__name__)

POOL_THRESHOLD = 16
"""Fewer new answers are recognised in this process, because starting workers takes longer."""


class Judge:
    """Recognises many answers at once and caches the results by speech codes."""

    def __init__(self, centroids: np.ndarray, *, workers: int = 2) -> None:
        self.centroids = centroids
        self.workers = workers
        self._cache: dict[tuple[int, ...], str] = {}
        self._recogniser: Recogniser | None = None

    def hear(self, answers: Sequence[Sequence[int]]) -> list[str | None]:
        """Returns the words heard in each answer's speech codes, ``""`` if there are none.

        A failure of the judge gives ``None`` and is logged. It is not cached, so that the same
        answer is tried again next time.

        Raises:
            UserError: the recogniser cannot be loaded, or no worker started.
            ModuleNotFoundError: pocketsphinx is not installed.
        """
        keys = [tuple(map(int, codes)) for codes in answers]
        new = [key for key in dict.fromkeys(keys) if key not in self._cache]
        if new:
            self._judge(new)
        return [self._cache.get(key) for key in keys]

    def _judge(self, new: Sequence[tuple[int, ...]]) -> None:
        check_recogniser()
        if self.workers > 1 and len(new) >= POOL_THRESHOLD:
            heard, failures = hear_in_workers(new, self.centroids, self.workers)
        else:
            if self._recogniser is None:
                self._recogniser = Recogniser(self.centroids)
            heard, failure = hear_each(self._recogniser, new)
            failures = [failure] if failure else []
        if failures:
            # An error, for only warnings of the main rank are shown, and each rank judges its own.
            logger.error(
                "the judge failed on %d of %d answers: %s",
                heard.count(None),
                len(new),
                "; ".join(dict.fromkeys(failures)),
            )
        for key, words in zip(new, heard, strict=True):
            if words is not None:
                self._cache[key] = words
