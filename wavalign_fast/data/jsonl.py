"""Reading JSONL files with errors that name the file and the line."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path


def read_jsonl(path: str | Path, *, keys: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields ``("file:line", record)`` of each line, the values of ``keys`` being non-empty text.

    Blank lines are skipped and further keys are left to the caller. What cannot be used raises
    ``ValueError`` with the file, the line, the value seen and the value wanted.
    """
    path = Path(path)
    found = False
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                found = True
                where = f"{path}:{number}"
                yield where, _record(line, keys, where)
    if not found:
        raise ValueError(f"{path}: no records, wanted one JSON object with {_names(keys)} a line")


def _record(line: bytes, keys: Sequence[str], where: str) -> dict[str, str]:
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: {line[:40]!r} is not UTF-8 text") from error
    except json.JSONDecodeError as error:
        text = _shorten(line.decode("utf-8-sig").strip())
        raise ValueError(
            f"{where}: malformed JSON ({error.msg} at column {error.colno}): {text}"
        ) from error
    if not isinstance(record, dict):
        raise ValueError(f"{where}: {_shorten(str(record))} is no JSON object")
    for key in keys:
        if key not in record:
            seen = _names(record) if record else "none"
            raise ValueError(f"{where}: key {key!r} is missing; keys seen: {seen}")
        if not isinstance(record[key], str) or not record[key].strip():
            raise ValueError(f"{where}: {key} is {record[key]!r}, wanted text that is not empty")
    return record


def _names(keys: Iterable[str]) -> str:
    return ", ".join(map(repr, keys))


def _shorten(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
