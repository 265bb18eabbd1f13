"""Reads dialogues of files, and counts and names each record that is left out."""

import logging
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from wavalign_fast.data.dialogues.containers import RawRecord, folder_of, raw_records
from wavalign_fast.data.dialogues.records import Dialogue, Place
from wavalign_fast.data.dialogues.schemas import (
    ReadOptions,
    make_dialogue,
    structure_errors,
)
from wavalign_fast.errors import UserError, one_line

logger = logging.getLogger(__name__)

NAMED = 5
"""Records that a message names; ``Drop`` has all."""


class Drop(NamedTuple):
    """A record that is left out."""

    place: Place
    reason: str
    """One of few, to count by."""
    detail: str
    """What was seen and what was wanted."""


@dataclass(frozen=True)
class Dialogues:
    """What was read."""

    dialogues: tuple[Dialogue, ...]
    drops: tuple[Drop, ...]

    def describe_drops(self) -> list[str]:
        """Returns a line for each reason: how many records, and where the first of them are."""
        places: dict[str, list[Place]] = defaultdict(list)
        for drop in self.drops:
            places[drop.reason].append(drop.place)
        total = len(self.dialogues) + len(self.drops)
        lines = []
        for reason, where in places.items():
            named = ", ".join(map(str, where[:NAMED])) + (", …" if len(where) > NAMED else "")
            lines.append(f"{len(where)} of {total} records left out: {reason} ({named})")
        return lines


def read_dialogues(paths: Sequence[str | Path], options: ReadOptions | None = None) -> Dialogues:
    """Reads dialogues, and logs a warning for each reason to leave records out.

    Args:
        paths: JSONL files, JSON lists and ``datasets`` directories, in any mixture.
        options: how records become dialogues; default: ``ReadOptions()``.

    Raises:
        UserError: a file cannot be read, or no dialogue is left.
    """
    options = options or ReadOptions()
    raw: list[tuple[Path, RawRecord]] = []
    for path in map(Path, paths):
        folder = folder_of(path)
        raw += [(folder, one) for one in raw_records(path)]
    kept: list[Dialogue] = []
    drops: list[Drop] = []
    for folder, (place, record) in _subset(raw, options):
        read = _dialogue_or_drop(record, place, folder, options)
        if isinstance(read, Drop):
            drops.append(read)
        else:
            kept.append(read)
    found = Dialogues(tuple(kept), tuple(drops))
    for line in found.describe_drops():
        logger.warning("%s", line)
    if not kept:
        first = f"the first: {drops[0].place}: {drops[0].detail}" if drops else "no file is given"
        raise UserError(f"no dialogue is left, {first}")
    return found


def _subset(
    raw: list[tuple[Path, RawRecord]], options: ReadOptions
) -> list[tuple[Path, RawRecord]]:
    if options.max_samples is None or options.max_samples >= len(raw):
        return raw
    chosen = random.Random(options.seed).sample(range(len(raw)), options.max_samples)
    return [raw[index] for index in sorted(chosen)]


def _dialogue_or_drop(
    record: Mapping[str, Any] | ValueError, place: Place, folder: Path, options: ReadOptions
) -> Dialogue | Drop:
    if isinstance(record, ValueError):
        return Drop(place, "not a JSON object", one_line(record))
    if errors := structure_errors(record):
        return Drop(place, "not of the schema", errors[0])
    dialogue = make_dialogue(record, place, folder, options)
    if options.task_types is not None and dialogue.task_type not in options.task_types:
        wanted = ", ".join(options.task_types)
        detail = f"task type {dialogue.task_type}, wanted {wanted}"
        return Drop(place, "other task type", detail)
    if options.unmatched == "drop" and (problem := unmatched_audio(dialogue)):
        return Drop(place, "audio tags and audios do not match", problem)
    return dialogue


def unmatched_audio(dialogue: Dialogue) -> str | None:
    """Returns why the tags of a prompt cannot be given their audios, or ``None``."""
    paths = dialogue.record.get("audios") or ()
    for number, path in enumerate(paths):
        if not path or not path.strip():
            return f"audios[{number}] is empty, wanted a path"
    if dialogue.tags != len(dialogue.audios):
        return f"audio tags: {dialogue.tags}, audios: {len(dialogue.audios)}, wanted as many"
    return None
