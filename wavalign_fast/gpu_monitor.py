"""Reads power, clocks, memory and temperature of an NVIDIA GPU through NVML.

    with GpuMonitor(device) as gpu:
        work()
        use = gpu.take()  # or None; then gpu.status has the reason

A thread takes the readings. Nothing here raises: if the driver or the package nvidia-ml-py is
missing, or the driver stops answering, there are no readings and ``status`` has the reason. For
that, every exception of NVML is caught, since package and driver may be of any version.
"""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, NamedTuple

import torch
from typing_extensions import Self

# NVML's reasons for reduced clocks, except idleness and clocks set by the user.
SLOWED_BY = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal",
    0x40: "hardware thermal",
    0x80: "power brake",
}

READERS: dict[str, Callable[[Any, Any], float]] = {
    "power_w": lambda nvml, gpu: nvml.nvmlDeviceGetPowerUsage(gpu) / 1e3,
    "energy_j": lambda nvml, gpu: nvml.nvmlDeviceGetTotalEnergyConsumption(gpu) / 1e3,
    "sm_mhz": lambda nvml, gpu: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM),
    "memory_mhz": lambda nvml, gpu: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_MEM),
    "temperature_c": lambda nvml, gpu: nvml.nvmlDeviceGetTemperature(
        gpu, nvml.NVML_TEMPERATURE_GPU
    ),
    "memory_bytes": lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).used,
    "utilization": lambda nvml, gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100,
    "reasons": lambda nvml, gpu: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu),
}
LIMITS: dict[str, Callable[[Any, Any], Any]] = {
    "driver": lambda nvml, gpu: nvml.nvmlSystemGetDriverVersion(),
    "gpu_uuid": lambda nvml, gpu: nvml.nvmlDeviceGetUUID(gpu),
    "sm_max_mhz": lambda nvml, gpu: nvml.nvmlDeviceGetMaxClockInfo(gpu, nvml.NVML_CLOCK_SM),
    "memory_max_mhz": lambda nvml, gpu: nvml.nvmlDeviceGetMaxClockInfo(gpu, nvml.NVML_CLOCK_MEM),
    "power_limit_w": lambda nvml, gpu: nvml.nvmlDeviceGetEnforcedPowerLimit(gpu) / 1e3,
}


class GpuUse(NamedTuple):
    """Readings of a GPU over a period; ``None`` for a value that this GPU does not report."""

    samples: int
    seconds: float
    power_w: float | None
    """Mean power of the board in watts, from the driver's averages over up to a second."""
    energy_j: float | None
    """Energy in joules from the board's counter, exact even with few samples."""
    sm_mhz: float | None
    """Mean clock of the multiprocessors in MHz."""
    sm_min_mhz: float | None
    memory_mhz: float | None
    """Mean clock of the memory in MHz."""
    temperature_c: float | None
    """Highest temperature of the chip in degrees Celsius."""
    memory_bytes: float | None
    """Peak memory in use on the device by all processes, in bytes."""
    utilization: float | None
    """Mean share of time in which a kernel was running, 0 to 1."""
    slowed: dict[str, float]
    """Share of samples with reduced clocks, by reason; reasons that did not occur are absent."""


class GpuMonitor:
    """Reads one GPU every ``interval_s`` seconds inside a ``with`` block.

    Args:
        device: a CUDA device of torch; a device of another type has no readings.
    """

    def __init__(self, device: torch.device, *, interval_s: float = 0.1) -> None:
        self.device = device
        self.interval_s = interval_s
        self.status: str | None = "not started"
        """``None`` while there are readings, else the reason why there are none."""
        self._nvml: Any = None
        self._gpu: Any = None
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._samples: list[dict[str, float]] = []
        self._since = 0.0

    def __enter__(self) -> Self:
        self.status = self._open()
        self._since = time.perf_counter()
        if self.status is None:
            self._stop.clear()
            self._sample()
            self._thread = threading.Thread(target=self._run, name="gpu-monitor", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None
            with suppress(Exception):
                self._nvml.nvmlShutdown()
            self.status = "not started"

    def take(self) -> GpuUse | None:
        """Returns the readings since the last call; ``None`` if there are none (see ``status``)."""
        if self._thread is None:
            return None
        self._sample()
        with self._lock:
            now = time.perf_counter()
            samples, seconds = self._samples, now - self._since
            # The next energy difference starts at the last reading.
            self._samples, self._since = samples[-1:], now
        return _summary(samples, seconds) if self.status is None else None

    def metrics(self) -> dict[str, float]:
        """Returns the readings as metrics of a training step; empty without readings."""
        use = self.take()
        if use is None:
            return {}
        names = ("power_w", "sm_mhz", "memory_mhz", "temperature_c", "memory_bytes", "utilization")
        values = {f"gpu/{name}": getattr(use, name) for name in names}
        values["gpu/slowed"] = max(use.slowed.values(), default=0.0)
        return {name: value for name, value in values.items() if value is not None}

    def limits(self) -> dict[str, Any]:
        """Returns driver, UUID, maximum clocks (MHz) and power limit (W), as far as reported."""
        if self._thread is None:
            return {}
        try:
            return self._read(LIMITS)
        except Exception as error:
            self.status = f"NVML stopped answering: {error}"
            return {}

    def _open(self) -> str | None:
        if self.device.type != "cuda":
            return f"{self.device} is no NVIDIA GPU"
        try:
            import pynvml
        except ModuleNotFoundError:
            return "nvidia-ml-py is not installed; pip install 'wavalign-fast[gpu]'"
        except (Exception, SystemExit) as error:
            return f"nvidia-ml-py cannot be imported: {type(error).__name__}: {error}"
        self._nvml = pynvml
        try:
            pynvml.nvmlInit()
        except Exception as error:
            return f"no NVIDIA driver answers: {error}"
        try:
            # NVML numbers all GPUs of the machine, torch only the visible ones.
            uuid = torch.cuda.get_device_properties(self.device).uuid
            self._gpu = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        except Exception as error:
            with suppress(Exception):
                pynvml.nvmlShutdown()
            return f"NVML does not know {self.device}: {error}"
        return None

    def _run(self) -> None:
        while not self._stop.wait(self.interval_s) and self.status is None:
            self._sample()

    def _sample(self) -> None:
        with self._lock:
            if self.status is not None:
                return
            try:
                self._samples.append(self._read(READERS))
            except Exception as error:
                self.status = f"NVML stopped answering: {error}"

    def _read(self, readers: dict[str, Callable[[Any, Any], Any]]) -> dict[str, Any]:
        values = {}
        for name, read in readers.items():
            try:
                values[name] = read(self._nvml, self._gpu)
            except (self._nvml.NVMLError_NotSupported, AttributeError):
                continue  # not supported by this GPU or by this version of the package
        return values


def _summary(samples: list[dict[str, float]], seconds: float) -> GpuUse:
    def over(name: str, combine: Callable[[list[float]], float]) -> float | None:
        values = [sample[name] for sample in samples if name in sample]
        return combine(values) if values else None

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    reasons = [int(sample["reasons"]) for sample in samples if "reasons" in sample]
    shares = {
        name: sum(bool(seen & bit) for seen in reasons) / len(reasons)
        for bit, name in SLOWED_BY.items()
        if any(seen & bit for seen in reasons)
    }
    return GpuUse(
        samples=len(samples),
        seconds=seconds,
        power_w=over("power_w", mean),
        energy_j=over("energy_j", lambda counts: counts[-1] - counts[0]),
        sm_mhz=over("sm_mhz", mean),
        sm_min_mhz=over("sm_mhz", min),
        memory_mhz=over("memory_mhz", mean),
        temperature_c=over("temperature_c", max),
        memory_bytes=over("memory_bytes", max),
        utilization=over("utilization", mean),
        slowed=shares,
    )
