"""NVML's package: where there is no driver, the reason is the driver and not the package."""

import pynvml
import torch

from wavalign_fast.gpu_monitor import GpuMonitor

assert pynvml.nvmlInit
with GpuMonitor(torch.device("cuda", 0)) as gpu:
    gpu.take()
assert "not installed" not in str(gpu.status), gpu.status
