"""How a model was trained to be talked to, in a file of its exported directory."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wavalign_fast.errors import UserError, shown
from wavalign_fast.models.json_files import read_json

DIALOGUE_FILE = "wavalign_dialogue.json"
KEYS = ("family", "system", "prompt_style", "ratio", "channel")
"""Options of the recipe that decide what prompts of a model are made of."""


def write_dialogue_file(directory: Path, task: Mapping[str, Any]) -> None:
    """Writes those of a recipe's options that are ``KEYS`` and are set; no file if none is."""
    (directory / DIALOGUE_FILE).unlink(missing_ok=True)  # of the model that training began with
    chosen = {key: task[key] for key in KEYS if task.get(key) is not None}
    if chosen:
        text = json.dumps(chosen, indent=2, ensure_ascii=False) + "\n"
        (directory / DIALOGUE_FILE).write_text(text, encoding="utf-8")


def read_dialogue_file(directory: Path) -> dict[str, Any]:
    """Returns the options in the file of a directory, none if it has no such file.

    Raises:
        UserError: the file cannot be read, or has another key.
    """
    found = dict(read_json(directory / DIALOGUE_FILE))
    if unknown := [key for key in found if key not in KEYS]:
        raise UserError(
            f"{directory / DIALOGUE_FILE}: {shown(unknown[0])} given, wanted some of "
            f"{', '.join(KEYS)}"
        )
    return found
