"""The results of tools/gpu_check.sh on a GPU, for docs/gpu.md."""

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..commit import commit_text
from .rows import Row, rows_of
from .tables import markdown_name, mebibytes, seconds

Figure = Callable[[Row], float | None]

FOLDER = "gpu"
NAMES = (
    "machine", "stages", "tests", "hybrid_loss", "linear_logprob", "profile", "sanitizer",
)  # fmt: skip
NOTHING = (
    "`tools/gpu_check.sh` has not run on a GPU yet. Its figures will appear here "
    "([tools/README.md](tools/README.md))."
)
REHEARSAL = "**A rehearsal without a GPU: no figure means anything.**"


class RehearsalError(ValueError):
    """The results come from a rehearsal, not from a GPU."""


def read_gpu(directory: Path) -> dict[str, Any] | None:
    """name -> record of the results in ``directory``; ``None`` where nothing was measured.

    Raises:
        RehearsalError: they come from a rehearsal.
    """
    paths = {name: directory / f"{name}.json" for name in NAMES}
    found = {
        name: json.loads(path.read_text(encoding="utf-8"))
        for name, path in paths.items()
        if path.exists()
    }
    for name, record in found.items():
        if is_rehearsed(record):
            raise RehearsalError(
                f"{paths[name]}: got the results of a rehearsal, want those of a GPU"
            )
    return found or None


def is_rehearsed(record: Any) -> bool:
    """Whether the record, or anything in it, is marked as rehearsed."""
    if isinstance(record, dict):
        return bool(record.get("rehearsed")) or any(map(is_rehearsed, record.values()))
    return isinstance(record, list) and any(map(is_rehearsed, record))


def gpu_block(found: dict[str, Any] | None) -> str:
    """The whole block: what ran where, what passed, times and memory, launches."""
    if found is None:
        return NOTHING
    cases = [case for name in ("hybrid_loss", "linear_logprob") for case in _cases(found, name)]
    parts = [
        REHEARSAL if is_rehearsed(found) else "",
        _device(found),
        _checks(found),
        _matrix("time, forward and backward, median", cases, _wall, seconds),
        _matrix("extra memory", cases, _extra, mebibytes),
        _failed(cases),
        _launches(found.get("profile", {})),
    ]
    return "\n\n".join(part for part in parts if part)


def _cases(found: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return list(found.get(name, {}).get("cases", []))


def _device(found: dict[str, Any]) -> str:
    """Device, driver, clocks, versions, commit."""
    record = found.get("machine", {})
    machine, smi = record.get("machine", {}), record.get("nvidia_smi")
    if not isinstance(smi, dict):  # the reason why there is none
        smi = {}
    versions, run = record.get("versions", {}), record.get("run", {})
    clock = f"{machine['sm_max_mhz']} MHz" if "sm_max_mhz" in machine else smi.get("clocks.max.sm")
    power = f"{machine['power_limit_w']:.0f} W" if "power_limit_w" in machine else None
    facts = [
        ("", machine.get("gpu", "unknown GPU")),
        ("driver ", machine.get("driver") or smi.get("driver_version")),
        ("clock up to ", clock),
        ("while measured ", _measured_clock(found)),
        ("power limit ", power or smi.get("power.limit")),
        ("torch ", machine.get("torch")),
        ("CUDA ", machine.get("cuda")),
        ("nvcc ", record.get("nvcc")),
        ("triton ", versions.get("triton")),
        ("", commit_text(run.get("commit"))),
        ("", run.get("date")),
    ]
    return ", ".join(f"{name}{value}" for name, value in facts if value) + "."


def _measured_clock(found: dict[str, Any]) -> str | None:
    """The range of the mean clocks of all comparisons."""
    cases = [*_cases(found, "hybrid_loss"), *_cases(found, "linear_logprob")]
    uses = [case["machine"].get("gpu_use") for case in cases]
    clocks = [use["sm_mhz"] for use in uses if isinstance(use, dict) and use.get("sm_mhz")]
    ends = dict.fromkeys(f"{end(clocks):.0f}" for end in (min, max)) if clocks else ()
    return f"{' to '.join(ends)} MHz" if ends else None


def _checks(found: dict[str, Any]) -> str:
    """Tests, sanitizers, and the stages that failed."""
    sentences = []
    for name, run in found.get("tests", {}).get("runs", {}).items():
        kinds = ("passed", "failed", "errors", "skipped")
        counts = ", ".join(f"{run[kind]} {kind}" for kind in kinds if run.get(kind))
        unfinished = "" if run["finished"] else " before its time ran out"
        sentences.append(f"`pytest -m gpu` ({name}): {counts or 'no test ran'}{unfinished}.")
    for tool, result in found.get("sanitizer", {}).get("tools", {}).items():
        sentences.append(f"compute-sanitizer {tool}: {result['outcome']}.")
    stages = found.get("stages", {}).get("stages", {})
    bad = [f"{name} ({_ending(stage)})" for name, stage in stages.items() if stage.get("rc") != 0]
    return " ".join(sentences + ([f"Stages that failed: {', '.join(bad)}."] if bad else []))


def _ending(stage: dict[str, Any]) -> str:
    if "rc" not in stage:
        return "no time was left"
    return "out of time" if stage["rc"] == 124 else f"exit code {stage['rc']}"


def _matrix(
    title: str, cases: list[dict[str, Any]], figure: Figure, text: Callable[[Any], str]
) -> str:
    """A row for each side, a column for each case; the least figure of a case is bold."""
    tables = [{row.name: row for row in rows_of(case)} for case in cases]
    least = [_least(figure, table.values()) for table in tables]
    lines = []
    for name in sorted({name: None for table in tables for name in table}, key=_order(tables)):
        rows = [table.get(name) for table in tables]
        figures = [None if row is None or row.wall is None else figure(row) for row in rows]
        cells = [
            f"**{text(value)}**" if value is not None and value == best else text(value)
            for value, best in zip(figures, least, strict=True)
        ]
        side = next(row for row in rows if row is not None)
        lines.append((markdown_name(side), cells))
        if figure is _wall:
            graphs = [seconds(None if row is None else row.graph) for row in rows]
            lines.append((f"{side.label}, as a graph", graphs))
    body = [f"| {label} | {' | '.join(cells)} |" for label, cells in lines if any(cells)]
    if not body:
        return ""
    head = f"| {title} | " + " | ".join(map(_head, cases)) + " |"
    return "\n".join([head, "|---|" + "---:|" * len(cases), *body])


def _least(figure: Figure, rows: Iterable[Row]) -> float | None:
    """The least figure of the timed sides, the bound excluded."""
    figures = [figure(row) for row in rows if row.wall is not None and not row.bound]
    return min((value for value in figures if value is not None), default=None)


def _wall(row: Row) -> float | None:
    return row.wall


def _extra(row: Row) -> float | None:
    return row.extra


def _order(tables: list[dict[str, Row]]) -> Callable[[str], tuple[bool, bool, float]]:
    """Sorts ours first, the bound last, and the others by their least time."""

    def order(name: str) -> tuple[bool, bool, float]:
        rows = [table[name] for table in tables if name in table]
        return rows[0].bound, not rows[0].ours, min(row.wall or math.inf for row in rows)

    return order


def _head(case: dict[str, Any]) -> str:
    shape = case["shape"]
    size = f"H {shape['hidden']}, V {shape['vocab']}"
    title = shape["title"]
    named = title if size in title else f"{title}: {size}"
    return f"{case['operation']}, {shape['live']} rows, {named}, {case['dtype']}"


def _failed(cases: list[dict[str, Any]]) -> str:
    """The sides that were wrong or raised an error, each named once."""
    failures: dict[str, None] = {}
    for case in cases:
        for row in rows_of(case):
            if row.outcome in ("wrong", "error"):
                why = "wrong result" if row.outcome == "wrong" else row.detail
                failures[f"{row.label}, {_head(case)}: {why}"] = None
    return f"Not timed: {'; '.join(failures)}." if failures else ""


def _launches(record: dict[str, Any]) -> str:
    """The launches of a step, and how busy host and device are."""
    parts = []
    for backend, found in record.get("backends", {}).items():
        if "launches" not in found:
            parts.append(f"{backend}: {found['error']}")
            continue
        parts.append(
            f"{backend}: {found['launches']:.0f} launches, host {seconds(found['host_s'])}, device "
            f"{seconds(found['device_s'])} of {seconds(found['wall_s'])} "
            f"(busy {found['busy_share']:.0%})"
        )
    return f"A hybrid step at the paper's head, not captured: {'; '.join(parts)}." if parts else ""
