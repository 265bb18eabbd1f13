"""Checks whole files of dialogues: every record, the WAV files, ids and encodings."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from wavalign_fast.data.dialogues.audio_files import SILENT, AudioFile, look_at_all
from wavalign_fast.data.dialogues.containers import folder_of, raw_records
from wavalign_fast.data.dialogues.records import Dialogue, Place
from wavalign_fast.data.dialogues.rules import SEVERITIES, Fault, Severity, faults
from wavalign_fast.data.dialogues.schemas import ReadOptions, make_dialogue, structure_errors
from wavalign_fast.errors import UserError, one_line, shown

RATES = (4000, 768_000)
"""Sample rates of recorded speech, in Hz; with another one the header was written wrong."""
BOM = b"\xef\xbb\xbf"


class Finding(NamedTuple):
    """A fault and the record that has it."""

    place: Place
    fault: Fault


class NamedAudio(NamedTuple):
    """An audio that a record names."""

    place: Place
    role: str
    """``prompt``, ``target`` or ``rejected``."""
    path: Path
    folder: Path
    """That relative paths start from."""


@dataclass
class CheckedFile:
    """What was found in one file."""

    path: Path
    records: int = 0
    findings: list[Finding] = field(default_factory=list)
    encoding: list[Fault] = field(default_factory=list)
    """Faults of the file as a whole."""
    task_types: Counter[str] = field(default_factory=Counter)
    unreadable: str | None = None
    """Why the file cannot be read, or not to its end."""

    def verdicts(self) -> dict[Place, Severity]:
        """Returns the gravest finding of each record that has one."""
        worst: dict[Place, Severity] = {}
        for place, fault in self.findings:
            worst[place] = min(worst.get(place, "warning"), fault.severity, key=SEVERITIES.index)
        return worst

    @property
    def clean(self) -> int:
        """Records without a finding."""
        return self.records - len(self.verdicts())


@dataclass(frozen=True)
class Check:
    """What was found in all files."""

    files: list[CheckedFile]
    audio: dict[Path, AudioFile]
    """What was found under each path; empty if nobody looked."""

    @property
    def exit_status(self) -> int:
        """0 without errors, 1 with errors, 2 if a file cannot be read."""
        if any(file.unreadable for file in self.files):
            return 2
        return int(
            any(fault.severity == "error" for one in self.files for _, fault in one.findings)
        )


def check_files(
    paths: Sequence[Path], options: ReadOptions, *, look_at_audio: bool = True
) -> Check:
    """Checks files that ``read_dialogues`` reads; ids must differ in all of them together.

    Args:
        options: as a run will have them; the random subset and ``unmatched`` play no part.
        look_at_audio: read the WAV files, too.
    """
    audios: list[NamedAudio] = []
    ids: dict[str, list[Place]] = defaultdict(list)
    files = [_check_file(path, options, audios, ids) for path in dict.fromkeys(paths)]
    found = look_at_all(one.path for one in audios) if look_at_audio else {}
    by_name = {str(file.path): file for file in files}
    for named in audios if look_at_audio else ():
        if fault := _audio_fault(named, found[named.path]):
            by_name[named.place.file].findings.append(Finding(named.place, fault))
    for name, places in ids.items():
        for place in places if len(places) > 1 else ():
            other = next(one for one in places if one != place)
            fault = Fault("warning", "id occurs twice", f"id {name} occurs twice, also in {other}")
            by_name[place.file].findings.append(Finding(place, fault))
    for file in files:
        file.findings.sort(key=lambda one: (one.place.line or 0, one.place.index or 0))
    return Check(files, found)


def _check_file(
    path: Path, options: ReadOptions, audios: list[NamedAudio], ids: dict[str, list[Place]]
) -> CheckedFile:
    """Checks a file, and adds the audios and ids of its records to those of the others."""
    checked = CheckedFile(path)
    folder = folder_of(path)
    try:
        for place, record in raw_records(path):
            checked.records += 1
            dialogue, wrong = _check_record(record, place, folder, options)
            checked.findings += [Finding(place, fault) for fault in wrong]
            if dialogue is None:
                continue
            checked.task_types[dialogue.task_type] += 1
            if dialogue.id is not None:
                ids[shown(dialogue.id)].append(place)
            audios += _audios(dialogue, options.audio_base_path or folder)
        if not path.is_dir():
            checked.encoding = list(_encoding(path))
    except UserError as error:
        checked.unreadable = one_line(error).removeprefix(f"{path}: ")
    return checked


def _check_record(
    record: Mapping[str, Any] | ValueError, place: Place, folder: Path, options: ReadOptions
) -> tuple[Dialogue | None, list[Fault]]:
    if isinstance(record, ValueError):
        return None, [Fault("error", "not a JSON object", one_line(record))]
    if errors := structure_errors(record):
        return None, [Fault("error", "not of the schema", message) for message in errors]
    looked_up = ReadOptions(audio_base_path=options.audio_base_path, force_s2s=options.force_s2s)
    dialogue = make_dialogue(record, place, folder, looked_up)
    return dialogue, list(faults(dialogue, options.task_types))


def _audios(dialogue: Dialogue, folder: Path) -> Iterator[NamedAudio]:
    for path in dialogue.audios:
        yield NamedAudio(dialogue.place, "prompt", path, folder)
    for role, answer in (("target", dialogue.target_audio), ("rejected", dialogue.rejected_audio)):
        if answer is not None:
            yield NamedAudio(dialogue.place, role, answer, folder)


def _audio_fault(named: NamedAudio, found: AudioFile) -> Fault | None:
    what = f"{named.role} audio {named.path}"
    if found.problem:
        outside = (
            "" if os.path.exists(named.path) or _is_inside(named) else " (it leaves the folder)"
        )
        kind = "audio cannot be read" if os.path.exists(named.path) else "audio is missing"
        return Fault("error", kind, f"{what}: {found.problem}{outside}")
    if not RATES[0] <= found.sample_rate <= RATES[1]:
        wanted = f"wanted {RATES[0]} to {RATES[1]}"
        message = f"{what}: its header says {found.sample_rate} Hz, {wanted}"
        return Fault("error", "odd sample rate", message)
    if found.peak < SILENT:
        return Fault(
            "warning", "audio is silent", f"{what} is silent: its peak is {found.peak:.1g}"
        )
    return None


def _is_inside(named: NamedAudio) -> bool:
    try:
        return named.path.resolve().is_relative_to(named.folder.resolve())
    except (OSError, ValueError):  # a name that no system takes leads nowhere
        return True


def _encoding(path: Path) -> Iterator[Fault]:
    """Yields what other programs may stumble over; ours reads it."""
    with path.open("rb") as file:
        first = file.read(len(BOM))
        ends = sum(line.endswith(b"\r\n") for line in file)
    if first == BOM:
        message = "the file begins with a byte order mark, which other JSON readers refuse"
        yield Fault("warning", "byte order mark", message)
    if ends:
        yield Fault("warning", "CRLF", f"{ends} lines end in CRLF")
