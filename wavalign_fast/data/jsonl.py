"""Reads JSONL files; errors name the file and the line."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from wavalign_fast.errors import shorten, shown

HALF_PAIR = re.compile("[\ud800-\udfff]")
"""Half of a surrogate pair, which JSON can write and UTF-8 cannot."""
MAX_LINE = 16 << 20
"""Maximum length of a line in bytes: far above any record, far below the size of the memory."""


def read_jsonl(path: str | Path, *, keys: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields ``("file:line", record)`` for each line; the values of ``keys`` are non-empty text.

    Skips blank lines and leaves further keys to the caller.

    Raises:
        ValueError: a line cannot be used; the message has file, line, value seen and value wanted.
    """
    for where, record in each_line(path, keys=keys):
        if isinstance(record, ValueError):
            raise record
        yield where, record


def each_line(
    path: str | Path, *, keys: Sequence[str] = ()
) -> Iterator[tuple[str, dict[str, Any] | ValueError]]:
    """Yields what ``read_jsonl`` yields, and for a line that cannot be used the error.

    Raises:
        ValueError: there is no record in the file, not even one that cannot be used.
    """
    path = Path(path)
    found = False
    for number, record in numbered_lines(path, keys=keys):
        found = True
        where = f"{path}:{number}"
        yield where, ValueError(f"{where}: {record}") if isinstance(record, ValueError) else record
    if not found:
        wanted = f" with {_names(keys)}" if keys else ""
        raise ValueError(f"{path}: no records, wanted one JSON object{wanted} per line")


def numbered_lines(
    path: Path, *, keys: Sequence[str] = ()
) -> Iterator[tuple[int, dict[str, Any] | ValueError]]:
    """Yields the number of each line that is not blank, and its record or what is wrong with it."""
    for number, line in enumerate(_lines(path), start=1):
        try:
            text = _text(line)
            if text:
                yield number, json_object(text, keys)
        except ValueError as error:
            yield number, error


def _text(line: bytes) -> str:
    if len(line) > MAX_LINE:
        raise ValueError(f"longer than {MAX_LINE} bytes, wanted one record per line")
    try:
        return line.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        near = line[max(error.start - 20, 0) : error.start + 20]
        raise ValueError(f"{near!r}, byte {error.start}, is not UTF-8 text") from error


def _lines(path: Path) -> Iterator[bytes]:
    """Yields the lines of a file, or the first bytes of a line that is too long."""
    try:
        with path.open("rb") as file:
            while line := file.readline(MAX_LINE + 1):
                yield line
                rest = line if len(line) > MAX_LINE else b"\n"
                while rest and not rest.endswith(b"\n"):
                    rest = file.readline(MAX_LINE)
    except OSError as error:
        if error.filename:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    except ValueError as error:  # a NUL in the name
        raise ValueError(f"{str(path)!r}: {error}") from error


def json_object(text: str, keys: Sequence[str] = ()) -> dict[str, Any]:
    """Returns the object of a JSON text; the values of ``keys`` are text with something in it.

    Raises:
        ValueError: it is not an object, lacks a key, has one twice, or a number is too large.
    """
    try:
        record = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"malformed JSON ({error.msg.removesuffix(' at')} at column {error.colno}): "
            f"{shorten(text)}"
        ) from error
    except RecursionError as error:
        raise ValueError(f"nested too deep: {shorten(text)}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{shorten(text)} is not a JSON object")
    for key in keys:
        if key not in record:
            raise ValueError(f"key {key!r} is missing; keys seen: {_names(record)}")
        check_text(key, record[key])
    return record


def check_text(name: str, value: Any) -> str:
    """Returns ``value`` if it is text with something in it; ``name`` is its key in the message."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} is {shown(value)}, wanted text that is not empty")
    if HALF_PAIR.search(value):
        raise ValueError(f"{name} is {shown(value)}: half of a surrogate pair")
    return value


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"key {shown(twice)} is given twice")
    return record


def _int(digits: str) -> int:
    try:
        return int(digits)
    except ValueError as error:  # Python converts at most 4300 digits
        raise ValueError(f"a number of {len(digits)} digits: {shorten(digits)}") from error


def _float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{shorten(digits)} is too large for a floating-point number")
    return value


def _constant(name: str) -> NoReturn:
    raise ValueError(f"malformed JSON: {name} is not a JSON number")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_pairs, parse_int=_int, parse_float=_float, parse_constant=_constant
)


def _names(keys: Iterable[str]) -> str:
    return shorten(", ".join(shown(key) for key in keys) or "none", 200)
