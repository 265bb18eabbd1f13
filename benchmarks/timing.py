"""Fair timing on a shared machine: all sides in turn in one process, medians, ratios, memory."""

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

import wavalign_fast as wf

from .gpu import CudaClock

Run = Callable[[], Any]

COPY_BYTES = 2**28
"""Far beyond any cache, so that the copy shows the memory and not the caches."""


class Clock(Protocol):
    """Takes the time of one call."""

    def time(self, run: Run) -> tuple[float, float]:
        """(seconds, CPU seconds of all threads of the process)."""

    def peak_extra_bytes(self, run: Run) -> int | None:
        """How far memory rises above its level before ``run``; ``None`` if that is unknown."""


class HostClock:
    """The clock of work on the CPU."""

    def time(self, run: Run) -> tuple[float, float]:
        before = time.perf_counter(), time.process_time()
        run()
        return time.perf_counter() - before[0], time.process_time() - before[1]

    def peak_extra_bytes(self, run: Run) -> int | None:
        return peak_extra_bytes(run)


def peak_extra_bytes(run: Run) -> int | None:
    """How far the process's resident memory rises above its level before ``run``.

    Buffers that ours caches from call to call are freed first, so that they count. ``None`` where
    the kernel does not let a process reset its own peak.
    """
    gc.collect()
    wf.empty_cache()
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


def clock_for(device: str) -> Clock:
    """The clock of a device type, "cpu" or "cuda"."""
    return CudaClock() if device == "cuda" else HostClock()


def paired(
    sides: Mapping[str, Run], *, rounds: int, clock: Clock | None = None, warm: Iterable[str] = ()
) -> dict[str, dict[str, Any]]:
    """Runs every side once per round, in alternating order, after one warm-up each.

    The sides named in ``warm`` have just run and need no warm-up.

    Returns for each side the medians and quartiles of its seconds and of its CPU seconds (all
    threads), and the median over rounds of its time divided by that of each other side.
    """
    if rounds < 2:
        raise ValueError(f"rounds: got {rounds}, want >= 2: one round has no quartiles")
    clock = clock or HostClock()
    for name in sides.keys() - set(warm):
        sides[name]()
    wall: dict[str, list[float]] = {name: [] for name in sides}
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    order = list(sides)
    for _ in range(rounds):
        for name in order:
            gc.collect()
            seconds, cpu_seconds = clock.time(sides[name])
            wall[name].append(seconds)
            cpu[name].append(cpu_seconds)
        order.reverse()  # or the same neighbour would always leave the caches for a side
    report: dict[str, dict[str, Any]] = {}
    for name in sides:
        report[name] = {
            "rounds": rounds,
            **_spread("wall", wall[name]),
            **_spread("cpu", cpu[name]),
            "wall_ratio_to": {
                other: statistics.median(
                    a / b for a, b in zip(wall[name], wall[other], strict=True)
                )
                for other in sides
                if other != name
            },
        }
    return report


def _spread(name: str, seconds: list[float]) -> dict[str, Any]:
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return {f"{name}_s": middle, f"{name}_quartiles_s": [low, high]}


def copy_side(device: str) -> Run:
    """A side that copies ``COPY_BYTES``: reads and writes that many."""
    source = torch.ones(COPY_BYTES // 4, device=device)
    target = torch.zeros_like(source)
    return lambda: target.copy_(source)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")
