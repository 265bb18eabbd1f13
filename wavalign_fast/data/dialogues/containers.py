"""Reads raw records from JSONL files, JSON lists and ``datasets`` directories."""

import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from wavalign_fast.data.dialogues.records import Place
from wavalign_fast.data.jsonl import json_object, numbered_lines
from wavalign_fast.errors import UserError, naming, shown, user_input

RawRecord = tuple[Place, dict[str, Any] | ValueError]
MAX_LIST = 4 << 30
"""Maximum size in bytes of a JSON list, which is read into memory whole; JSONL has none."""
BLANK = " \t\r\n"


def raw_records(path: Path) -> Iterator[RawRecord]:
    """Yields the place of each record, and the record or what is wrong with it.

    A directory is one that ``datasets.Dataset.save_to_disk`` wrote. A file that begins with ``[``
    and is not called ``.jsonl`` is a JSON list. Any other file has one object a line; blank lines,
    byte order marks and CRLF are accepted.

    Raises:
        UserError: the file cannot be read, has no record, or is a JSON list that is malformed.
    """
    found = False
    for place, record in _records_of(path):
        found = True
        yield place, record
    if not found:
        raise UserError(f"{path}: no records, wanted at least one")


def folder_of(path: Path) -> Path:
    """Returns the folder that the relative paths in a file or ``datasets`` directory start from."""
    return path if path.is_dir() else path.parent


def _records_of(path: Path) -> Iterator[RawRecord]:
    with user_input(str(path)):
        if path.is_dir():
            yield from _directory(path)
        elif path.suffix != ".jsonl" and _starts_a_list(path):
            yield from _list(path)
        else:
            for number, record in numbered_lines(path):
                yield Place(str(path), number), record


def _starts_a_list(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(1 << 16).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")


def _list(path: Path) -> Iterator[RawRecord]:
    if (size := path.stat().st_size) > MAX_LIST:
        raise UserError(f"{path}: a JSON list of {size} bytes, wanted JSONL, one record a line")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8 text") from error
    decoder = json.JSONDecoder()
    at, line = text.index("[") + 1, 1 + text.count("\n", 0, text.index("["))
    for index in count():
        start = _skip_blanks(text, at)
        line += text.count("\n", at, start)
        if index == 0 and text.startswith("]", start):
            return
        place = Place(str(path), line, index)
        with naming(str(place)):
            end = _end_of_value(decoder, text, start)
        try:
            record: dict[str, Any] | ValueError = json_object(text[start:end])
        except ValueError as error:
            record = error
        yield place, record
        at = _skip_blanks(text, end)
        line += text.count("\n", start, at)
        if text[at : at + 1] != ",":
            break
        at += 1
    if text[at:].strip() != "]":
        raise UserError(f"{path}:{line}: {shown(text[at : at + 20])} follows, wanted , or a last ]")


def _skip_blanks(text: str, at: int) -> int:
    while at < len(text) and text[at] in BLANK:
        at += 1
    return at


def _end_of_value(decoder: json.JSONDecoder, text: str, start: int) -> int:
    try:
        return decoder.raw_decode(text, start)[1]
    except RecursionError as error:
        raise UserError("nested too deep") from error
    except json.JSONDecodeError as error:
        what = error.msg.removesuffix(" at")
        raise UserError(f"malformed JSON ({what} in line {error.lineno})") from error


def _directory(path: Path) -> Iterator[RawRecord]:
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"{path}: reading a directory needs the package datasets: "
            "pip install 'wavalign-fast[datasets]'"
        ) from error
    if not (path / "state.json").is_file():
        splits = sorted(str(state.parent) for state in path.glob("*/state.json"))
        wanted = f"one of its splits: {', '.join(splits)}" if splits else "what save_to_disk writes"
        raise UserError(f"{path}: the directory has no state.json, wanted {wanted}")
    for index, record in enumerate(datasets.load_from_disk(str(path))):
        yield Place(str(path), None, index), dict(record)
