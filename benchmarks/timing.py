"""Fair timing on a shared machine: all sides in turn in one process, medians, ratios, memory."""

import ctypes
import gc
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def paired(sides: Mapping[str, Callable[[], Any]], *, rounds: int) -> dict[str, dict[str, Any]]:
    """Runs every side once per round, in turn, after one warm-up each.

    Returns for each side the median and quartiles of its wall seconds and of its CPU seconds (all
    threads), and the median over rounds of its wall time divided by each other side's.
    """
    for run in sides.values():
        run()
    wall: dict[str, list[float]] = {name: [] for name in sides}
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            gc.collect()
            before = time.perf_counter(), time.process_time()
            run()
            wall[name].append(time.perf_counter() - before[0])
            cpu[name].append(time.process_time() - before[1])
    report: dict[str, dict[str, Any]] = {}
    for name in sides:
        low, middle, high = statistics.quantiles(wall[name], n=4, method="inclusive")
        report[name] = {
            "wall_s": middle,
            "wall_quartiles_s": [low, high],
            "cpu_s": statistics.median(cpu[name]),
            "wall_ratio_to": {
                other: statistics.median(
                    a / b for a, b in zip(wall[name], wall[other], strict=True)
                )
                for other in sides
                if other != name
            },
        }
    return report


def peak_extra_bytes(run: Callable[[], Any]) -> int | None:
    """How far the process's resident memory rises above its level before ``run``.

    ``None`` where the kernel does not let a process reset its own peak.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    before = _status("VmRSS")
    kept = run()
    peak = _status("VmHWM")
    del kept
    return peak - before


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = next((ln.split(":")[1].strip() for ln in info.splitlines() if "model name" in ln), "?")
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    ).stdout.strip()
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit,
        "date": time.strftime("%Y-%m-%d"),
    }


def save(name: str, record: dict[str, Any]) -> Path:
    """Writes ``results/<name>.json``."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    return path
