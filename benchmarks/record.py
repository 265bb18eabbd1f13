"""Result files: what was measured, on which machine, at which commit."""

import json
import os
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from wavalign_fast.outputs import write_whole

from . import gpu
from .commit import own_commit

RESULTS = Path(__file__).parent / "results"
FORMAT = 2
KEY = ("device", "dtype", "operation")


def machine(device: str = "cpu") -> dict[str, Any]:
    """The machine, the software and the commit of a measurement."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = next((ln.split(":")[1].strip() for ln in info.splitlines() if "model name" in ln), "?")
    facts = {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "wavalign_fast": installed_version("wavalign-fast"),
        "commit": own_commit(),
        "date": time.strftime("%Y-%m-%d"),
    }
    return facts | (gpu.describe() if device == "cuda" else {})


def installed_version(distribution: str) -> str | None:
    """The version of an installed distribution; ``None`` where it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def save(name: str, record: dict[str, Any], directory: Path = RESULTS) -> Path:
    """Writes ``<name>.json``, whole or not at all."""
    path = directory / f"{name}.json"
    write_whole(path, (json.dumps(record, indent=2) + "\n").encode())
    return path


def load(name: str, directory: Path = RESULTS) -> dict[str, Any] | None:
    """The record of a benchmark; ``None`` where it did not run."""
    path = directory / f"{name}.json"
    if not path.exists():
        return None
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record


def case_key(case: dict[str, Any]) -> tuple[str, ...]:
    """Identifies what a case measures."""
    return (case["shape"]["name"], *(case[name] for name in KEY))


def add_case(name: str, case: dict[str, Any], directory: Path, **facts: Any) -> Path:
    """Puts a case into ``<name>.json``, in place of an earlier one with the same ``case_key``.

    ``facts`` become entries of the record itself.
    """
    record = load(name, directory) or {"benchmark": name, "format": FORMAT, "cases": []}
    keys = [case_key(old) for old in record["cases"]]
    if case_key(case) in keys:
        record["cases"][keys.index(case_key(case))] = case
    else:
        record["cases"].append(case)
    return save(name, record | facts, directory)
