"""Where the time of our hybrid step at the paper's head goes: launches, host, device, kernels.

python -m tools.gpu_check.step_profile DIRECTORY
"""

import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.bench_hybrid_loss import Step
from benchmarks.shapes import PAPER
from tools.gpu_check import files
from wavalign_fast.ops import backend_status

SHAPE = PAPER
ACTIVITIES = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
DEVICE = "CUDA"
"""Device type of the rows of a profile that are kernels, copies and fills."""
WARM_UPS, TIMED, PROFILED = 5, 20, 5
SLOWEST = 12
NOT_KERNELS = {"Memcpy": "copies", "Memset": "fills"}
QUEUEING = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "cudaMemcpy", "cudaMemset")
WAITING = ("cudaDeviceSynchronize", "cudaStreamSynchronize", "cudaEventSynchronize")


def steps_timed(run: Callable[[], Any]) -> dict[str, float]:
    """Seconds of a step, and those that the host spends queueing it."""
    for _ in range(WARM_UPS):
        run()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(TIMED):
        run()
    queued = time.perf_counter()
    torch.cuda.synchronize()
    return {"wall_s": (time.perf_counter() - start) / TIMED, "host_s": (queued - start) / TIMED}


def rows_profiled(run: Callable[[], Any]) -> Any:
    """The rows of torch's profile over ``PROFILED`` steps."""
    with profile(activities=ACTIVITIES) as seen:
        for _ in range(PROFILED):
            run()
        torch.cuda.synchronize()
    return seen.key_averages()


def summary(rows: Iterable[Any], timed: dict[str, float], steps: int) -> dict[str, Any]:
    """The launches of a step, and how long the device works on it.

    ``calls`` are the host's calls of the driver and the runtime that queue work or wait for it.

    Raises:
        RuntimeError: the profile has no kernel.
    """
    counts = {"kernels": 0.0, **dict.fromkeys(NOT_KERNELS.values(), 0.0)}
    calls: dict[str, float] = {}
    kernels = []
    for row in rows:
        if row.device_type.name == DEVICE:
            kind = next((k for word, k in NOT_KERNELS.items() if row.key.startswith(word)), None)
            counts[kind or "kernels"] += row.count / steps
            seconds = row.self_device_time_total / 1e6 / steps
            kernels.append({"name": row.key, "count": row.count / steps, "seconds": seconds})
        elif row.key.startswith((*QUEUEING, *WAITING)):
            calls[row.key] = row.count / steps
    if not counts["kernels"]:
        raise RuntimeError("the profiler saw no kernel")
    device = sum(kernel["seconds"] for kernel in kernels)
    kernels.sort(key=lambda kernel: -kernel["seconds"])
    return {
        **timed,
        "device_s": device,
        "busy_share": device / timed["wall_s"],
        "launches": sum(counts.values()),
        **counts,
        "calls": calls,
        "slowest": kernels[:SLOWEST],
    }


def profiled(run: Callable[[], Any]) -> dict[str, Any]:
    """The entry of a backend, with the times of steps without the profiler, or with an error."""
    timed = steps_timed(run)
    rows = rows_profiled(run)
    print(rows.table(sort_by="self_cuda_time_total", row_limit=22, max_name_column_width=70))
    print(rows.table(sort_by="self_cpu_time_total", row_limit=15, max_name_column_width=50))
    try:
        return summary(rows, timed, PROFILED)
    except RuntimeError as error:
        return {**timed, "error": str(error)}


def line(backend: str, found: dict[str, Any]) -> str:
    """The entry in a line, for the terminal."""
    if "wall_s" not in found:
        return f"{backend}: {found['error']}"
    times = f"{backend}: {found['wall_s'] * 1e3:.3f} ms a step, host {found['host_s'] * 1e3:.3f} ms"
    if "error" in found:
        return f"{times}; {found['error']}"
    return (
        f"{times}, {found['launches']:.0f} launches, device {found['device_s'] * 1e3:.3f} ms, "
        f"busy {found['busy_share']:.0%}"
    )


def main(directory: str) -> int:
    if not torch.cuda.is_available():
        sys.exit("gpu_check: this torch sees no GPU")
    path = Path(directory) / "profile.json"
    files.write(path, {"shape": asdict(SHAPE) | {"live": SHAPE.live}, "backends": {}})
    step = Step(SHAPE, torch.bfloat16, "cuda")
    entries = {}
    for backend in ("cuda", "triton"):
        reason = backend_status()[backend]
        found = profiled(step.ours(backend)) if reason is None else {"error": reason}
        files.put(path, "backends", backend, found)
        entries[backend] = found
    print("\n".join(line(backend, found) for backend, found in entries.items()))
    # The stage that builds reports a missing backend.
    ran = [found for found in entries.values() if "wall_s" in found]
    return int(not ran or any("error" in found for found in ran))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
