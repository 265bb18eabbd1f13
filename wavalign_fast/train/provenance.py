"""Records when, where and with which command a run was started, in ``provenance.json``."""

import platform
import shlex
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from wavalign_fast import machine
from wavalign_fast.checkout import own_commit
from wavalign_fast.redaction import without_secrets
from wavalign_fast.train.atomic_files import write_json
from wavalign_fast.train.owned_files import PROVENANCE_FILE, read_json_object

PACKAGES = ("wavalign-fast", "torch", "transformers")
MAX_STARTS = 100
"""A run that is stopped and continued for ever keeps its first start and the last ones."""


def record_start(
    path: Path, *, words: Sequence[str], step: int, reward_scale: str | None = None
) -> None:
    """Adds this start of a run to its ``provenance.json``.

    Neither the name of the machine nor a secret in the command is written: a report is published.

    Args:
        words: the arguments of ``wavalign-fast``, as the user typed them.
        step: the step that the run starts after, 0 for a new one.
        reward_scale: what the rewards mean, in the words of the task.
    """
    start: dict[str, Any] = {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "step": step,
        "command": shlex.join(["wavalign-fast", *without_secrets(list(words))]),
        "commit": own_commit(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": machine.cpu()[0],
        "cores": machine.usable_cores(),
        "gpus": machine.gpus(),
        "versions": {"Python": platform.python_version(), **_versions()},
        "reward_scale": reward_scale,
    }
    file = path / PROVENANCE_FILE
    starts = read_json_object(file).get("starts")
    before = starts if isinstance(starts, list) else []
    if len(before) >= MAX_STARTS:
        before = [before[0], *before[2 - MAX_STARTS :]]
    known = {name: value for name, value in start.items() if value is not None}
    write_json(file, {"starts": [*before, known]})


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except Exception:  # not installed, or its metadata cannot be read
            continue
    return found
