"""What an NVIDIA GPU does while work runs on it: power, clocks, memory, temperature, through NVML.

    with GpuMonitor(device) as gpu:
        work()
        use = gpu.take()  # or None, and gpu.status says why

A thread reads the GPU. Nothing here raises: where the driver or the package nvidia-ml-py is absent,
or the driver stops answering, there are no readings and ``status`` has the reason. So everything
that NVML raises is caught, not only its own errors: the package and the driver come in any version.
"""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, NamedTuple

import torch
from typing_extensions import Self

# Bits of NVML's reasons for clocks below the highest, but for idleness and clocks set by the user.
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
    """What was read of a GPU over a time; ``None`` is what this GPU does not tell."""

    samples: int
    seconds: float
    power_w: float | None
    """Mean draw of the board, watts; the driver's own averages, over up to a second."""
    energy_j: float | None
    """Joules, by the board's counter: exact where the mean power of few samples is not."""
    sm_mhz: float | None
    """Mean clock of the multiprocessors, MHz."""
    sm_min_mhz: float | None
    memory_mhz: float | None
    """Mean clock of the memory, MHz."""
    temperature_c: float | None
    """Highest of the chip, degrees Celsius."""
    memory_bytes: float | None
    """Most memory in use on the device, by all processes."""
    utilization: float | None
    """Mean share of time in which some kernel ran, 0 to 1."""
    slowed: dict[str, float]
    """Share of samples in which clocks were held down, by reason; reasons not seen are absent."""


class GpuMonitor:
    """Reads one GPU every ``interval_s`` seconds between entering and leaving it.

    Args:
        device: a CUDA device of torch; one of another type has no readings.
    """

    def __init__(self, device: torch.device, *, interval_s: float = 0.1) -> None:
        self.device = device
        self.interval_s = interval_s
        self.status: str | None = "not started"
        """``None`` while there are readings, else why there are none."""
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
        """What was read since the last call or the start; ``None`` where ``status`` says why."""
        if self._thread is None:
            return None
        self._sample()
        with self._lock:
            now = time.perf_counter()
            samples, seconds = self._samples, now - self._since
            # The energy counter goes on from the last reading.
            self._samples, self._since = samples[-1:], now
        return _summary(samples, seconds) if self.status is None else None

    def metrics(self) -> dict[str, float]:
        """``take`` under the names of a training step's metrics; empty without readings."""
        use = self.take()
        if use is None:
            return {}
        names = ("power_w", "sm_mhz", "memory_mhz", "temperature_c", "memory_bytes", "utilization")
        values = {f"gpu/{name}": getattr(use, name) for name in names}
        values["gpu/slowed"] = max(use.slowed.values(), default=0.0)
        return {name: value for name, value in values.items() if value is not None}

    def limits(self) -> dict[str, Any]:
        """Driver, identity, highest clocks (MHz) and power limit (W), as far as they are told."""
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
            # NVML counts all GPUs of the machine, torch those that the process may see.
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
                continue  # what the GPU, or this version of the package, does not have
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
