"""The GPU monitor on a fake NVML: its sums, and that nothing missing raises."""

import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch

from benchmarks import gpu as benchmark_gpu
from wavalign_fast.gpu_monitor import GpuMonitor

CUDA = torch.device("cuda", 0)


class NVMLError(Exception):
    pass


class NotSupportedError(NVMLError):
    pass


class FakeNVML:
    """A driver whose GPU draws 100 W, then 300 W, ..., and is held down from the second sample."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = "sm", "memory", "gpu"
    NVMLError, NVMLError_NotSupported = NVMLError, NotSupportedError

    def __init__(self, *, absent: str = "", dies_after: int | None = None) -> None:
        self.absent, self.dies_after = absent, dies_after
        self.samples = self.open = 0

    def nvmlInit(self):
        if self.absent == "driver":
            raise NVMLError("library not found")
        self.open += 1

    def nvmlShutdown(self):
        self.open -= 1

    def nvmlDeviceGetHandleByUUID(self, uuid):
        if uuid != "GPU-1234":
            raise NVMLError(f"no {uuid}")
        return "the GPU"

    def nvmlDeviceGetPowerUsage(self, gpu):
        self.samples += 1
        if self.dies_after is not None and self.samples > self.dies_after:
            raise NVMLError("GPU is lost")
        return 100_000 if self.samples == 1 else 300_000

    def nvmlDeviceGetTotalEnergyConsumption(self, gpu):
        if self.absent == "energy":
            raise NotSupportedError("not supported")
        return 5_000 * self.samples

    def nvmlDeviceGetClockInfo(self, gpu, kind):
        return {"sm": 2000 - 100 * self.samples, "memory": 2600}[kind]

    def nvmlDeviceGetMaxClockInfo(self, gpu, kind):
        return {"sm": 1980, "memory": 2619}[kind]

    def nvmlDeviceGetTemperature(self, gpu, sensor):
        return 40 + self.samples

    def nvmlDeviceGetMemoryInfo(self, gpu):
        return SimpleNamespace(used=2**30 * self.samples)

    def nvmlDeviceGetUtilizationRates(self, gpu):
        return SimpleNamespace(gpu=50)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, gpu):
        return 0x1 if self.samples == 1 else 0x4 | 0x20

    def nvmlDeviceGetEnforcedPowerLimit(self, gpu):
        return 700_000

    def nvmlSystemGetDriverVersion(self):
        return "580.1"

    def nvmlDeviceGetUUID(self, gpu):
        return "GPU-1234"


@pytest.fixture
def nvml(monkeypatch):
    def install(**kwargs) -> FakeNVML:
        fake = FakeNVML(**kwargs)
        monkeypatch.setitem(sys.modules, "pynvml", fake)
        properties = SimpleNamespace(uuid="1234", name="H100", total_memory=1, L2_cache_size=2)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        return fake

    return install


def monitor(**kwargs) -> GpuMonitor:
    # A long interval: samples are taken only at the start and by ``take``.
    return GpuMonitor(CUDA, **({"interval_s": 3600.0} | kwargs))


def test_units_and_what_is_a_mean_and_what_an_extreme(nvml):
    fake = nvml()
    with monitor() as gpu:
        assert gpu.status is None
        first = gpu.take()
        second = gpu.take()
    assert first.samples == 2
    assert (first.power_w, first.energy_j) == (200.0, 5.0)
    assert (first.sm_mhz, first.sm_min_mhz, first.memory_mhz) == (1850, 1800, 2600)
    assert (first.temperature_c, first.memory_bytes, first.utilization) == (42, 2 * 2**30, 0.5)
    assert first.slowed == {"power cap": 0.5, "software thermal": 0.5}
    # The energy difference starts at the previous reading.
    assert second.energy_j == 5.0 and second.slowed == {"power cap": 1.0, "software thermal": 1.0}
    assert fake.open == 0


def test_every_reading_has_its_name_among_the_metrics(nvml):
    nvml()
    with monitor() as gpu:
        first, second = gpu.metrics(), gpu.metrics()
    assert first == {
        "gpu/power_w": 200.0,
        "gpu/sm_mhz": 1850.0,
        "gpu/memory_mhz": 2600.0,
        "gpu/temperature_c": 42,
        "gpu/memory_bytes": 2 * 2**30,
        "gpu/utilization": 0.5,
        "gpu/slowed": 0.5,
    }
    assert second["gpu/slowed"] == 1.0


def test_a_gpu_that_was_never_held_down_was_slowed_for_no_time(nvml, monkeypatch):
    fake = nvml()
    monkeypatch.setattr(fake, "nvmlDeviceGetCurrentClocksThrottleReasons", lambda gpu: 0x1)
    with monitor() as gpu:
        assert gpu.metrics()["gpu/slowed"] == 0.0


def test_the_worst_reason_counts(nvml, monkeypatch):
    fake = nvml()
    reasons = iter([0x4, 0x4 | 0x40, 0x4 | 0x40])
    monkeypatch.setattr(
        fake, "nvmlDeviceGetCurrentClocksThrottleReasons", lambda gpu: next(reasons)
    )
    with monitor() as gpu:
        gpu._sample()
        assert gpu.metrics()["gpu/slowed"] == 1.0  # power cap in 3 of 3, heat in 2 of 3


@pytest.mark.parametrize(
    "error", [OSError("libnvidia-ml.so.1"), AttributeError("x"), SystemExit(1), ImportError("y")]
)
def test_a_package_that_fails_at_its_import_is_a_status(nvml, failing_import, error):
    nvml()
    failing_import("pynvml", error)
    with monitor() as gpu:
        assert gpu.take() is None and gpu.metrics() == {} and gpu.limits() == {}
        assert gpu.status.startswith(f"nvidia-ml-py cannot be imported: {type(error).__name__}")


@pytest.mark.parametrize(
    ("place", "status"),
    [
        ("nvmlInit", "no NVIDIA driver answers: strange"),
        ("nvmlDeviceGetHandleByUUID", "NVML does not know cuda:0: strange"),
        ("nvmlDeviceGetPowerUsage", "NVML stopped answering: strange"),
    ],
)
@pytest.mark.parametrize("kind", [OSError, TypeError, RuntimeError])
def test_a_driver_may_fail_with_any_error(nvml, monkeypatch, place, status, kind):
    fake = nvml()

    def fail(*args):
        raise kind("strange")

    monkeypatch.setattr(fake, place, fail)
    with monitor() as gpu:
        assert gpu.take() is None and gpu.metrics() == {}
        assert gpu.status == status
    assert fake.open == 0


def test_a_reading_that_this_package_lacks_is_none(nvml, monkeypatch):
    nvml()
    monkeypatch.delattr(FakeNVML, "nvmlDeviceGetCurrentClocksThrottleReasons")
    with monitor() as gpu:
        use = gpu.take()
    assert use.slowed == {} and use.power_w == 200.0


def test_limits_of_a_driver_that_dies_are_none(nvml, monkeypatch):
    fake = nvml()
    with monitor() as gpu:
        monkeypatch.setattr(fake, "nvmlSystemGetDriverVersion", lambda: 1 // 0)
        assert gpu.limits() == {} and "stopped answering" in gpu.status


def test_a_thread_reads_while_work_runs_and_ends_with_it(nvml):
    fake = nvml()
    with monitor(interval_s=0.001) as gpu:
        deadline = time.monotonic() + 10
        while fake.samples < 5 and time.monotonic() < deadline:
            time.sleep(0.001)
        assert gpu.take().samples >= 5
    assert not [thread for thread in threading.enumerate() if thread.name == "gpu-monitor"]


def test_what_a_gpu_does_not_tell_is_none(nvml):
    nvml(absent="energy")
    with monitor() as gpu:
        use = gpu.take()
    assert use.energy_j is None and use.power_w == 200.0


@pytest.mark.parametrize(
    ("device", "absent", "reason"),
    [
        (CUDA, "package", "nvidia-ml-py is not installed; pip install 'wavalign-fast[gpu]'"),
        (CUDA, "driver", "no NVIDIA driver answers: library not found"),
        (torch.device("cpu"), "", "cpu is no NVIDIA GPU"),
    ],
)
def test_absence_is_a_status(nvml, monkeypatch, device, absent, reason):
    nvml(absent=absent)
    if absent == "package":
        monkeypatch.setitem(sys.modules, "pynvml", None)
    with GpuMonitor(device) as gpu:
        assert gpu.take() is None and gpu.metrics() == {} and gpu.limits() == {}
        assert gpu.status == reason


def test_a_gpu_that_nvml_does_not_know_is_a_status(nvml, monkeypatch):
    fake = nvml()
    strange = SimpleNamespace(uuid="5678")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: strange)
    with monitor() as gpu:
        assert gpu.status == "NVML does not know cuda:0: no GPU-5678"
    assert fake.open == 0


def test_a_driver_that_dies_stops_the_readings_not_the_run(nvml):
    nvml(dies_after=1)
    with monitor() as gpu:
        assert gpu.take() is None
        assert gpu.status == "NVML stopped answering: GPU is lost"
        assert gpu.metrics() == {} and gpu.take() is None


def test_benchmarks_record_limits_and_use(nvml):
    nvml()
    facts = benchmark_gpu.describe()
    assert (facts["driver"], facts["sm_max_mhz"], facts["power_limit_w"]) == ("580.1", 1980, 700.0)
    record = {}
    with benchmark_gpu.recorded("cuda", record):
        pass
    assert record["gpu_use"]["samples"] == 2
    nvml(absent="driver")
    assert "no NVIDIA driver" in benchmark_gpu.describe()["gpu_limits"]
    with benchmark_gpu.recorded("cuda", record):
        pass
    assert "no NVIDIA driver" in record["gpu_use"]
    record.clear()
    with benchmark_gpu.recorded("cpu", record):
        pass
    assert record == {}
