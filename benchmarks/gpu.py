"""Timing and description of a CUDA device: events, a cold L2 cache, clocks through NVML."""

import time
from collections.abc import Callable
from typing import Any

import torch

WARM_UP_FLOPS = 2e12
"""Work before the first measurement: clocks of an idle GPU are low, and they take a while."""


class CudaClock:
    """The clock of work on the current CUDA device."""

    def __init__(self) -> None:
        l2_bytes = torch.cuda.get_device_properties(0).L2_cache_size
        self._flush = torch.empty(max(2 * l2_bytes, 2**26), dtype=torch.int8, device="cuda")
        a = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
        for _ in range(int(WARM_UP_FLOPS / (2 * 4096**3)) + 1):
            a = torch.tanh(a @ a)
        torch.cuda.synchronize()

    def time(self, run: Callable[[], Any]) -> tuple[float, float]:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        # What the call before left in the L2 cache must not help this one.
        self._flush.zero_()
        torch.cuda.synchronize()
        cpu_before = time.process_time()
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3, time.process_time() - cpu_before

    def peak_extra_bytes(self, run: Callable[[], Any]) -> int | None:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        kept = run()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated()
        del kept
        return peak - before


def describe() -> dict[str, Any]:
    """Name, memory and, where the NVML bindings are installed, clocks, power limit and driver."""
    properties = torch.cuda.get_device_properties(0)
    facts: dict[str, Any] = {
        "gpu": properties.name,
        "gpu_memory_bytes": properties.total_memory,
        "gpu_l2_bytes": properties.L2_cache_size,
        "cuda": torch.version.cuda,
    }
    try:
        import pynvml
    except ImportError:
        return facts | {"gpu_clocks": "not recorded: nvidia-ml-py is not installed"}
    pynvml.nvmlInit()
    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{properties.uuid}")
        facts["driver"] = pynvml.nvmlSystemGetDriverVersion()
        facts["gpu_uuid"] = str(properties.uuid)
        facts["gpu_clocks"] = {
            "sm_mhz": pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
            "sm_max_mhz": pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM),
            "memory_mhz": pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM),
            "temperature_c": pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
            "power_limit_w": pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3,
        }
    finally:
        pynvml.nvmlShutdown()
    return facts
