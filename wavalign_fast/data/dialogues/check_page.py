"""What a check found, as text for people and as JSON for programs."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wavalign_fast.data.dialogues.audio_files import AudioFile
from wavalign_fast.data.dialogues.check import Check, CheckedFile, Finding
from wavalign_fast.data.dialogues.rules import SEVERITIES
from wavalign_fast.errors import MAX_MESSAGE, shorten

VERDICTS = (
    ("clean", "clean"),
    ("error", "with errors"),
    ("dropped", "dropped"),
    ("warning", "with warnings"),
)


def as_text(check: Check, *, shown: int) -> str:
    """Returns the summary: a block for each file, then the audio, then the verdict.

    Args:
        shown: findings of each kind that are written out.
    """
    blocks = ["\n".join(_file_lines(file, shown)) for file in check.files]
    if check.audio:
        blocks.append("\n".join(_audio_lines(check.audio)))
    return "\n\n".join([*blocks, _last_line(check)])


def as_json(check: Check) -> dict[str, Any]:
    """Returns the counts of the summary, and every finding."""
    return {
        "exit_status": check.exit_status,
        "files": [_file_json(file) for file in check.files],
        "audio": _audio(check.audio),
    }


def _file_json(file: CheckedFile) -> dict[str, Any]:
    return {
        "file": str(file.path),
        "unreadable": file.unreadable,
        "records": file.records,
        **_counts(file),
        "task_types": dict(file.task_types),
        "encoding": [fault.message for fault in file.encoding],
        "findings": [
            {"line": place.line, "index": place.index, **fault._asdict()}
            for place, fault in file.findings
        ],
    }


def _counts(file: CheckedFile) -> dict[str, int]:
    """Returns how many records are without a finding, and how many have each verdict."""
    verdicts = Counter(file.verdicts().values())
    return {"clean": file.clean, **{name: verdicts[name] for name in SEVERITIES}}


def _file_lines(file: CheckedFile, shown: int) -> Iterator[str]:
    yield f"{file.path}"
    counts = _counts(file)
    verdicts = ", ".join(f"{counts[name]} {words}" for name, words in VERDICTS if counts[name])
    yield f"  records     {file.records}" + (f" ({verdicts})" if verdicts else "")
    if file.task_types:
        tasks = ", ".join(f"{name} {count}" for name, count in file.task_types.most_common())
        yield f"  task types  {tasks}"
    for kind, findings in _by_kind(file.findings):
        yield f"  {findings[0].fault.severity}: {kind} ({len(findings)})"
        for one in findings[:shown]:
            yield f"    {_short(one)}: {shorten(one.fault.message, MAX_MESSAGE)}"
        if len(findings) > shown:
            yield f"    and {len(findings) - shown} more (--show, --json)"
    yield from (f"  {fault.severity}: {fault.message}" for fault in file.encoding)
    if file.unreadable:
        yield f"  unreadable: {file.unreadable}"


def _by_kind(findings: list[Finding]) -> list[tuple[str, list[Finding]]]:
    """Returns the findings of each kind, the gravest kinds first."""
    kinds: dict[str, list[Finding]] = defaultdict(list)
    for one in findings:
        kinds[one.fault.kind].append(one)

    def gravity(item: tuple[str, list[Finding]]) -> int:
        return SEVERITIES.index(item[1][0].fault.severity)

    return sorted(kinds.items(), key=gravity)


def _short(finding: Finding) -> str:
    """Returns the place without the name of the file, which stands above."""
    place = finding.place
    index = "" if place.index is None else f"[{place.index}]"
    return index if place.line is None else f"line {place.line} {index}".rstrip()


def _audio(found: dict[Path, AudioFile]) -> dict[str, Any]:
    good = [one for one in found.values() if one.problem is None]
    return {
        "files": len(found),
        "unusable": len(found) - len(good),
        "seconds": round(sum(one.seconds for one in good), 3),
        "longest_seconds": round(max((one.seconds for one in good), default=0.0), 3),
        "sample_rates": dict(Counter(one.sample_rate for one in good).most_common()),
        "channels": dict(Counter(one.channels for one in good).most_common()),
    }


def _audio_lines(found: dict[Path, AudioFile]) -> Iterator[str]:
    counts = _audio(found)
    rates = ", ".join(f"{rate} Hz {files}" for rate, files in counts["sample_rates"].items())
    several = sum(files for channels, files in counts["channels"].items() if channels > 1)
    yield f"audio: {counts['files']} files, {counts['unusable']} unusable"
    yield (
        f"  length      {counts['seconds'] / 3600:.2f} hours; the longest "
        f"{counts['longest_seconds']:.1f} s"
    )
    yield f"  rates       {rates or 'none'}"
    if several:
        yield f"  channels    several in {several} of the files"


def _last_line(check: Check) -> str:
    findings = [one for file in check.files for one in file.findings]
    errors = sum(one.fault.severity == "error" for one in findings)
    unreadable = sum(file.unreadable is not None for file in check.files)
    counted = f"{errors or 'no'} error" + "s" * (errors != 1)
    if unreadable:
        return f"{unreadable} of {len(check.files)} files cannot be read; {counted}"
    return counted
