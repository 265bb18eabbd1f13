"""Writes text and JSON files whole or not at all, and replaces directories by a rename."""

import json
import math
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from wavalign_fast.outputs import write_whole


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text, whole or not at all."""
    write_whole(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Writes strict JSON, whole or not at all; NaN and infinities become null."""
    write_text(path, to_json(value, indent=2) + "\n")


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Returns strict JSON; NaN and infinities become null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False, ensure_ascii=False)


def replace_directory(new: Path, target: Path, retired: Path | None = None) -> None:
    """Replaces ``target`` by the directory ``new``; moves the old one to ``retired`` or removes it.

    A crash between the two renames leaves the old directory complete under its retired name.
    """
    parking = retired or target.with_name(f"{target.name}.old")
    remove(parking)
    if os.path.lexists(target):
        parking.parent.mkdir(parents=True, exist_ok=True)
        os.replace(target, parking)
    os.replace(new, target)
    if retired is None:
        with suppress(OSError):  # the new directory is in place; the next call tries again
            remove(parking)


def remove(path: Path) -> None:
    """Removes a file, a directory with its content, or a link (but not its target)."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync_directory(path: Path) -> None:
    """Flushes every file in ``path`` to the disk; a full disk may be reported only here."""
    for file in path.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
