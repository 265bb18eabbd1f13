"""Knows which files of a run directory this program wrote; ``--overwrite`` removes only those.

A marker file identifies a directory as a run or as the folder of several arms. Files beside ours
are left alone. A foreign file inside one of our folders is an error, and then nothing is removed.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from wavalign_fast.errors import UserError
from wavalign_fast.outputs import TEMPORARY
from wavalign_fast.train.atomic_files import remove, write_json

MARKER_FILE = ".wavalign-run.json"
CONFIG_FILE = "config.yaml"
EVALUATION_FILE = "evaluation.json"
SAMPLES_FILE = "samples.json"
BASE_SAMPLES_FILE = "base_samples.json"
PROVENANCE_FILE = "provenance.json"
METRICS_FILE = "metrics.jsonl"
REPORT_FILE = "report.html"
PROFILE = "profile"
SOUNDS = "wav"
CHECKPOINT = "checkpoint"
OLDER_CHECKPOINTS = "checkpoints"
PARKED_CHECKPOINT = "checkpoint.old"
"""Holds the last checkpoint while a new one takes its place; ``replace_directory`` names it."""
UNFINISHED_CHECKPOINT = ".checkpoint.tmp"
STATE_FILE = "training_state.pt"
"""What every checkpoint has: the step, the optimizer's state and all else that is not weights."""
EXPORTED = "model"
"""Holds the exported model of a run whose checkpoints are no model directories."""
PARKED_EXPORT = "model.old"
UNFINISHED_EXPORT = ".model.tmp"
CONTENTS_FILE = "contents.json"
"""Lists the step and the files of a checkpoint or of an exported model, in its directory."""
REPLACED = ".replaced"
"""Holds an overwritten run until the new one is set up."""
DROPPED = ".dropped"
"""Holds the rest of an overwritten run whose removal was interrupted."""

FILES = {
    MARKER_FILE,
    CONFIG_FILE,
    EVALUATION_FILE,
    SAMPLES_FILE,
    BASE_SAMPLES_FILE,
    PROVENANCE_FILE,
    METRICS_FILE,
    REPORT_FILE,
}
EVENTS = re.compile(r"events\.out\.tfevents\..*")
TRACE = re.compile(r"steps-\d+-\d+\.json\.gz")
WANDB = re.compile(r"(offline-)?run-\d{8}_\d{6}-\w+(\.wandb\.synced)?|latest-run|debug.*\.log")
SOUND = re.compile(r"(base-)?\d{3,}\.wav")
UNFINISHED = {UNFINISHED_CHECKPOINT, UNFINISHED_EXPORT, REPLACED, DROPPED}
"""Folders that are ours by their name alone."""


def read_marker(path: Path) -> dict[str, Any] | None:
    """Reads the marker of ``path``; returns ``None`` if ``path`` is not a run of ours."""
    marker = read_json_object(path / MARKER_FILE)
    return marker if marker.get("format") == 1 else None


def recorded_arms(path: Path) -> list[str]:
    """Returns the arms in the marker of ``path``, without names that lead out of ``path``."""
    arms = (read_marker(path) or {}).get("arms")
    names = [arm for arm in arms if isinstance(arm, str)] if isinstance(arms, list) else []
    return [arm for arm in names if arm == os.path.basename(arm) and arm not in ("", ".", "..")]


def write_marker(path: Path, **facts: Any) -> None:
    """Marks ``path`` as ours and adds ``facts`` to those already in the marker."""
    write_json(path / MARKER_FILE, {**(read_marker(path) or {}), "format": 1, **facts})


def checkpoint_contents(directory: Path) -> dict[str, Any]:
    """Returns ``step`` and ``files`` of a checkpoint; missing and damaged values are left out."""
    contents = read_json_object(directory / CONTENTS_FILE)
    files = contents.get("files")
    if not isinstance(files, list) or not all(isinstance(name, str) for name in files):
        contents.pop("files", None)
    return contents


def write_contents(directory: Path, step: int | None, **facts: Any) -> None:
    """Lists the step and all files of a checkpoint or an exported model, and ``facts`` of it."""
    files = [path.relative_to(directory) for path in directory.rglob("*") if path.is_file()]
    contents = {"step": step, "files": sorted(map(str, files)), **facts}
    write_json(directory / CONTENTS_FILE, contents)


def read_json_object(path: Path) -> dict[str, Any]:
    """Reads a JSON object; returns an empty one if the file is missing or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def own_paths(run: Path) -> list[Path]:
    """Returns what ``--overwrite`` removes: our files and folders in a run and in its arms.

    Raises:
        UserError: one of our folders holds a file that this program did not write.
    """
    own = []
    for path in sorted(run.iterdir()):
        folder = path.is_dir() and not path.is_symlink()
        if path.name in FILES or TEMPORARY.fullmatch(path.name):
            own += [] if folder else [path]
        elif path.name in UNFINISHED:
            own.append(path)
        elif path.name in FOLDERS:
            foreign = foreign_file(path, path.name) if folder else None
            if foreign is not None:
                raise UserError(
                    f"{foreign} is not a file of this program; it is not overwritten: move it away "
                    "or give another --name"
                )
            own.append(path)
    for arm in recorded_arms(run):
        if read_marker(run / arm) is not None:
            own += own_paths(run / arm)
    return own


def remove_half_written(run: Path) -> None:
    """Removes the temporary files that a killed process left in a run."""
    for folder in (run, run / SOUNDS):
        for path in folder.iterdir() if folder.is_dir() else ():
            if TEMPORARY.fullmatch(path.name):
                remove(path)


def foreign_file(folder: Path, kind: str) -> Path | None:
    """Returns a file in ``folder``, one of ours of that name, that this program did not write."""
    return next(FOLDERS[kind](folder), None) if folder.is_dir() else None


def set_aside(run: Path) -> None:
    """Moves our files of a run into a folder inside it, from which ``put_back`` restores them."""
    paths, arms = own_paths(run), recorded_arms(run)
    remove(run / REPLACED)
    for path in paths:
        if path.name == REPLACED:
            continue
        target = run / REPLACED / path.relative_to(run)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)
    for arm in arms:
        with suppress(OSError):  # not empty because of a foreign file, or a link
            (run / arm).rmdir()


def put_back(run: Path) -> None:
    """Removes our files of a run that did not start, and restores the run that was set aside."""
    for path in own_paths(run):
        if path.name != REPLACED:
            remove(path)
    aside = run / REPLACED
    for folder, _, names in os.walk(aside, topdown=False):
        within = run / Path(folder).relative_to(aside)
        within.mkdir(parents=True, exist_ok=True)
        for name in names:
            os.replace(Path(folder) / name, within / name)
    remove(aside)


def drop_replaced(run: Path) -> None:
    """Removes the files that ``set_aside`` moved."""
    if (run / REPLACED).exists():
        remove(run / DROPPED)
        os.replace(run / REPLACED, run / DROPPED)
    remove(run / DROPPED)


def has_replaced(run: Path) -> bool:
    """Whether a process ended between ``set_aside`` and ``drop_replaced`` (needs ``put_back``)."""
    return os.path.lexists(run / REPLACED)


def _foreign_files(folder: Path, own: re.Pattern[str]) -> Iterator[Path]:
    ours = re.compile(f"{own.pattern}|{TEMPORARY.pattern}")
    return (path for path in folder.iterdir() if not ours.fullmatch(path.name))


def _foreign_in_checkpoint(folder: Path) -> Iterator[Path]:
    own = {folder / name for name in (*checkpoint_contents(folder).get("files", ()), CONTENTS_FILE)}
    folders = {parent for path in own for parent in path.parents}
    return (path for path in folder.rglob("*") if path not in own and path not in folders)


def _foreign_in_checkpoints(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if re.fullmatch(r"step-\d+", path.name) and path.is_dir():
            yield from _foreign_in_checkpoint(path)
        else:
            yield path


FOLDERS = {
    CHECKPOINT: _foreign_in_checkpoint,
    PARKED_CHECKPOINT: _foreign_in_checkpoint,
    EXPORTED: _foreign_in_checkpoint,
    PARKED_EXPORT: _foreign_in_checkpoint,
    OLDER_CHECKPOINTS: _foreign_in_checkpoints,
    "tensorboard": lambda folder: _foreign_files(folder, EVENTS),
    SOUNDS: lambda folder: _foreign_files(folder, SOUND),
    PROFILE: lambda folder: _foreign_files(folder, TRACE),
    "wandb": lambda folder: _foreign_files(folder, WANDB),
}
