"""The result files of a run: JSON, written whole, each with the run that it belongs to.

Nothing here imports torch, which takes seconds.
"""

import json
import os
from pathlib import Path
from typing import Any

from wavalign_fast.outputs import write_whole

RUN = "GPU_CHECK_RUN"
"""The variable in which tools/gpu_check.sh passes commit, date, and whether it rehearses."""


def current_run() -> dict[str, Any]:
    """The run that this process belongs to; empty where the script did not start it."""
    return dict(json.loads(os.environ.get(RUN, "{}")))


def read(path: Path) -> dict[str, Any]:
    """The record in a file; empty where there is no file."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def write(path: Path, record: dict[str, Any], run: dict[str, Any] | None = None) -> None:
    """Writes the record and its run, by default the current one."""
    text = json.dumps(record | {"run": current_run() if run is None else run}, indent=2)
    write_whole(path, f"{text}\n".encode())


def put(path: Path, group: str, name: str, value: Any) -> None:
    """Sets one entry of a group in the record of a file."""
    record = read(path)
    write(path, record | {group: record.get(group, {}) | {name: value}})
