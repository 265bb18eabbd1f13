"""The devices of the records, and the records that no commit can reproduce."""

from collections.abc import Iterator, Mapping
from typing import Any

from ..commit import DIRTY, commit_text
from .plots import Records
from .tables import caption


def where_measured(records: Records) -> str:
    """A sentence that names the GPUs, or says that there was none; "" without measurements."""
    machines = [machine for _, machine in _measured(records)]
    if not machines:
        return ""
    gpus = sorted({machine["gpu"] for machine in machines if "gpu" in machine})
    if not gpus:
        return "CPU only: no GPU took part in these measurements."
    on_cpu = any("gpu" not in machine for machine in machines)
    return f"Measured on {'the CPU and on ' if on_cpu else ''}{', '.join(gpus)}."


def uncommitted_note(records: Records) -> str:
    """Names what was measured in a checkout with uncommitted changes; "" where nothing was."""
    found: dict[str, list[str]] = {}
    for what, machine in _measured(records):
        if (machine.get("commit") or "").endswith(DIRTY):
            found.setdefault(commit_text(machine["commit"]), []).append(what)
    return " ".join(f"Measured at {text}: {'; '.join(names)}." for text, names in found.items())


def _measured(records: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(what, machine) of every case, and of every record with a single machine.

    The records of a GPU are one level deeper: a mapping of the same form under one name.
    """
    for name, record in records.items():
        if not isinstance(record, Mapping):
            continue
        machine = record.get("machine")
        if isinstance(machine, Mapping) and "cpu" in machine:
            yield name.replace("_", "-"), dict(machine)
        elif "cases" in record:
            yield from ((caption(case), case["machine"]) for case in record["cases"])
        else:
            yield from _measured(record)
