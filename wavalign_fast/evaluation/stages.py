"""The files of an evaluation's stages, which are added to line by line and can be resumed.

A stage remembers the options that it was made with in ``stages.json``. A later call with other
options would mix two evaluations in one file, so it is refused by the option's name.
"""

import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from wavalign_fast.data.jsonl import each_line
from wavalign_fast.errors import DamagedFileError, UserError, one_line, shown
from wavalign_fast.train.atomic_files import to_json, write_json

logger = logging.getLogger(__name__)

RESPONSES, WAVS, HEARD, SCORES = "responses", "wavs", "heard", "scores"
STAGES = (RESPONSES, WAVS, HEARD, SCORES)
"""In the order in which they are made; each needs those before it."""
SETTINGS_FILE = "stages.json"
FROM_MODEL = {"weights", "model files"}


class StageFile:
    """One stage: a JSONL file whose records have an ``id``; of several for a key the last counts.

    Args:
        directory: of the evaluation.
        keys: what tells records apart.
    """

    def __init__(self, directory: Path, stage: str, *, keys: tuple[str, ...] = ("id",)) -> None:
        self.path = directory / f"{stage}.jsonl"
        self.keys = keys
        self.damaged: list[str] = []
        """What is wrong with lines that cannot be read; their records are missing."""

    def read(self) -> dict[tuple[Any, ...], dict[str, Any]]:
        """Returns the records by key; notes damaged lines, and cuts off a half-written last one."""
        self.damaged = []
        if not self.path.exists():
            return {}
        self._cut_half_line()
        if self.path.stat().st_size == 0:
            return {}
        found = {}
        for where, record in each_line(self.path):
            if isinstance(record, ValueError):
                self.damaged.append(one_line(record))
            elif missing := [key for key in self.keys if key not in record]:
                self.damaged.append(f"{where}: key {missing[0]} is missing")
            else:
                found[tuple(record[key] for key in self.keys)] = record
        for line in self.damaged:
            logger.warning("damaged, made again: %s", line)
        return found

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Adds records at the end, and waits until they are on the disk."""
        text = "".join(to_json(record) + "\n" for record in records)
        with self.path.open("ab") as file:
            file.write(text.encode("utf-8", errors="surrogatepass"))
            file.flush()
            os.fsync(file.fileno())

    def _cut_half_line(self) -> None:
        """Removes what a killed process left of a line; the next one would be glued to it."""
        with self.path.open("rb+") as file:
            size = file.seek(0, os.SEEK_END)
            end = size
            while end > 0:
                start = max(0, end - (1 << 16))
                file.seek(start)
                newline = file.read(end - start).rfind(b"\n")
                if newline >= 0:
                    end = start + newline + 1
                    break
                end = start
            if end < size:
                logger.warning("%s: its last line is cut off, and is made again", self.path)
                file.truncate(end)


class Stages:
    """The settings of all stages of a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / SETTINGS_FILE
        self.settings: dict[str, dict[str, Any]] = self._read()

    def _read(self) -> dict[str, dict[str, Any]]:
        if not self.path.exists():
            return {}
        try:
            value = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DamagedFileError(f"{self.path} cannot be read: {one_line(error)}") from error
        known = isinstance(value, dict) and all(isinstance(one, dict) for one in value.values())
        if not known:
            raise DamagedFileError(f"{self.path} is {shown(value)}, wanted settings by stage")
        return value

    def use(self, stage: str, settings: Mapping[str, Any]) -> None:
        """Records the settings of a stage, or compares them with those it was begun with.

        Raises:
            UserError: the stage was made with others.
        """
        wanted = json.loads(to_json(dict(settings)))
        before = self.settings.get(stage)
        if before is not None and (self.directory / f"{stage}.jsonl").exists():
            for name in {**before, **wanted}:
                if before.get(name) != wanted.get(name):
                    self._refuse(stage, name, before.get(name), wanted.get(name))
        self.settings[stage] = wanted
        write_json(self.path, self.settings)

    def _refuse(self, stage: str, name: str, before: Any, now: Any) -> None:
        if name in FROM_MODEL:
            seen = f"--model: its {name} differ from those that made {stage}.jsonl"
        else:
            seen = f"{name}: {shown(now)} given, but {stage}.jsonl was made with {shown(before)}"
        raise UserError(
            f"{seen}; wanted the same, another --output, or --redo {stage}, which removes "
            f"{self.directory / stage}.jsonl and what follows from it"
        )

    def redo(self, stage: str) -> None:
        """Removes the file of a stage and of those after it."""
        for name in STAGES[STAGES.index(stage) :]:
            (self.directory / f"{name}.jsonl").unlink(missing_ok=True)
            self.settings.pop(name, None)
        write_json(self.path, self.settings)
