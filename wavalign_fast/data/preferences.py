"""Reads offline preference pairs."""

from pathlib import Path
from typing import Any

from wavalign_fast.data.jsonl import read_jsonl
from wavalign_fast.data.records import Preference
from wavalign_fast.errors import shown


def read_preferences(path: str | Path, *, vocab_size: int) -> list[Preference]:
    """Reads a JSONL file with ``prompt_ids``, ``chosen_ids``, ``rejected_ids`` and maybe ``id``.

    ``id`` is that of a training example with the same prompt.

    Raises:
        OSError: the file cannot be read.
        ValueError: a line cannot be used; the message has file, line, value seen and value wanted.
    """
    found = []
    for where, record in read_jsonl(path, keys=()):
        example = record.get("id")
        if example is not None and not isinstance(example, str):
            raise ValueError(f"{where}: id is {shown(example)}, wanted text")
        prompt, chosen, rejected = (
            _ids(record, name, where, vocab_size)
            for name in ("prompt_ids", "chosen_ids", "rejected_ids")
        )
        if chosen == rejected:
            raise ValueError(f"{where}: chosen_ids and rejected_ids are equal, wanted two answers")
        found.append(
            Preference(
                prompt_ids=prompt, chosen_ids=chosen, rejected_ids=rejected, example_id=example
            )
        )
    return found


def _ids(record: dict[str, Any], name: str, where: str, vocab_size: int) -> tuple[int, ...]:
    ids = record.get(name)
    if not isinstance(ids, list) or not ids:
        raise ValueError(f"{where}: {name} is {shown(ids)}, wanted a list of ids that is not empty")
    for token in ids:
        if type(token) is not int or not 0 <= token < vocab_size:
            raise ValueError(f"{where}: {name} has {shown(token)}, wanted 0 <= id < {vocab_size}")
    return tuple(ids)
