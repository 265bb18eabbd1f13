"""Timing and description of a CUDA device: events, a cold L2 cache, NVML's readings."""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from wavalign_fast.gpu_monitor import GpuMonitor

Run = Callable[[], Any]

WARM_UP_FLOPS = 2e12
"""Work before the first measurement, until the clocks of an idle GPU have risen."""
WARM_UPS = 3
"""Runs before a capture."""


class CudaClock:
    """The clock of work on the current CUDA device."""

    def __init__(self) -> None:
        l2_bytes = torch.cuda.get_device_properties(0).L2_cache_size
        self._flush = torch.empty(max(2 * l2_bytes, 2**26), dtype=torch.int8, device="cuda")
        # Drawn on the CPU: a failed capture may have broken the GPU's random numbers.
        a = torch.randn(4096, 4096).to("cuda", torch.bfloat16)
        for _ in range(int(WARM_UP_FLOPS / (2 * 4096**3)) + 1):
            a = torch.tanh(a @ a)
        torch.cuda.synchronize()

    def time(self, run: Run) -> tuple[float, float]:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        # Evict what the previous call left in the L2 cache.
        self._flush.zero_()
        torch.cuda.synchronize()
        cpu_before = time.process_time()
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3, time.process_time() - cpu_before

    def peak_extra_bytes(self, run: Run) -> int | None:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        kept = run()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated()
        del kept
        return peak - before


def captured(run: Run) -> tuple[Run, Any]:
    """Captures ``run`` as a CUDA graph; returns its replay, and the result that replays overwrite.

    A graph is launched as a whole, so its time is that of the device alone. The time of ``run``
    itself includes the cost of Python and of the launches.

    Raises:
        RuntimeError: it cannot be captured, for example because of a host sync.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # keeps the set-up of a first run out of the graph
        for _ in range(WARM_UPS):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()
    graph.replay()
    return graph.replay, result


def release_memory() -> None:
    """Returns unreferenced memory to the device, that of dropped graphs included."""
    gc.collect()
    torch.cuda.empty_cache()


def describe() -> dict[str, Any]:
    """Name, memory and, where NVML answers, driver, highest clocks and power limit."""
    properties = torch.cuda.get_device_properties(0)
    with GpuMonitor(torch.device("cuda", 0)) as gpu:
        limits = gpu.limits() or {"gpu_limits": f"not recorded: {gpu.status}"}
    return {
        "gpu": properties.name,
        "gpu_memory_bytes": properties.total_memory,
        "gpu_l2_bytes": properties.L2_cache_size,
        "cuda": torch.version.cuda,
        **limits,
    }


@contextmanager
def recorded(device: str, facts: dict[str, Any]) -> Iterator[None]:
    """Adds NVML's readings during the block to ``facts``; does nothing on another device."""
    with GpuMonitor(torch.device(device)) as gpu:
        yield
        use = gpu.take()
        if use is not None:
            facts["gpu_use"] = use._asdict()
        elif device == "cuda":
            facts["gpu_use"] = f"not recorded: {gpu.status}"
