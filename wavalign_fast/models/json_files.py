"""Reads the JSON files of a model directory; nothing that they name is run."""

import json
from pathlib import Path
from typing import Any

from wavalign_fast.errors import DamagedFileError, UserError, one_line


def read_config(directory: Path) -> dict[str, Any]:
    """Reads ``config.json``.

    Raises:
        DamagedFileError: it is no JSON object.
        UserError: there is none.
    """
    check_config_is_there(directory)
    return read_json(directory / "config.json")


def check_config_is_there(directory: Path) -> None:
    """Raises ``UserError`` unless ``directory`` has a ``config.json``."""
    if not (directory / "config.json").is_file():
        raise UserError(f"no checkpoint in {directory}: config.json is missing")


def read_json(file: Path) -> dict[str, Any]:
    """Reads a JSON object; a file that is missing is an empty one.

    Raises:
        DamagedFileError: the file has something else.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DamagedFileError(f"{file} cannot be read: {one_line(error)}") from error
    if not isinstance(value, dict):
        raise DamagedFileError(f"{file} holds {type(value).__name__}, wanted a JSON object")
    return value
