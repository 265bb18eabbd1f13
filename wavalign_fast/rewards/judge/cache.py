"""Keeps judgements on disk, one file each, by a hash of what they depend on."""

import json
import logging
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from wavalign_fast.errors import UserError, one_line
from wavalign_fast.rewards.judge.failures import MissingScoreError
from wavalign_fast.rewards.judge.rubrics import Rubric
from wavalign_fast.rewards.judge.scores import read_scores

logger = logging.getLogger(__name__)


class JudgementCache:
    """Files ``DIRECTORY/ab/KEY.json``, written whole or not at all, by any number of processes.

    Args:
        directory: is made if it is missing; ``None`` keeps nothing.

    Raises:
        UserError: the directory cannot be made or written.
    """

    def __init__(self, directory: Path | None) -> None:
        self.directory = directory
        self._warned = False
        if directory is None:
            return
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=directory):
                pass
        except OSError as error:
            raise UserError(
                f"the cache {directory} cannot be written: {one_line(error)}"
            ) from error

    def read(self, key: str, rubric: Rubric) -> tuple[dict[str, float], str] | None:
        """Returns scores and justification, ``None`` if they are not there or the file is damaged.

        A damaged file is replaced once its judgement has been asked for again.
        """
        if self.directory is None:
            return None
        try:
            entry = json.loads(self._file(key).read_text(encoding="utf-8"))
            # The key is in the file too: a file under another name is damage.
            if entry["key"] != key:
                return None
            scores, _ = read_scores(json.dumps(entry["scores"]), rubric, told="")
            return scores, str(entry["justification"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError, MissingScoreError):
            return None

    def write(self, key: str, scores: Mapping[str, float], justification: str) -> None:
        """Stores a judgement. A failure costs only the next request: it is logged once."""
        if self.directory is None:
            return
        try:
            self._write(key, {"key": key, "scores": scores, "justification": justification})
        except OSError as error:
            if not self._warned:
                logger.warning("judge: the cache cannot be written: %s", one_line(error))
            self._warned = True

    def _write(self, key: str, entry: Mapping[str, Any]) -> None:
        target = self._file(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        # Not ``outputs.write_whole``: ranks on several machines can have the same process id, and
        # a file that a crash damages is asked for again, so nothing need be synced.
        descriptor, temporary = tempfile.mkstemp(
            prefix=f"{key[:8]}-", suffix=".tmp", dir=target.parent
        )
        try:
            with open(descriptor, "w", encoding="utf-8") as file:
                json.dump(entry, file)
            os.replace(temporary, target)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise

    def _file(self, key: str) -> Path:
        assert self.directory is not None
        return self.directory / key[:2] / f"{key}.json"
