"""Peak rates of GPUs, from the vendor's data sheets."""

import re
from dataclasses import dataclass
from typing import NamedTuple

import torch


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """The data sheet of a GPU; every rate is a peak that no program reaches."""

    name: str
    source: str
    arch: int
    """90 for sm_90."""
    matrix_flops: float
    """bf16 GEMMs with fp32 sums, without sparsity, per second."""
    memory_bytes: float
    """Bytes between the chip and its memory per second."""
    vector_flops: float
    """fp32 outside GEMMs, per second."""
    multiprocessors: int
    lanes: int
    """fp32 lanes of a multiprocessor, each one multiply-add per clock."""
    l2_bytes: int
    shared_bytes: int
    """The most shared memory that one block can have."""

    @property
    def clock_hz(self) -> float:
        """The clock at which the data sheet's fp32 rate is reached."""
        return self.vector_flops / (2 * self.lanes * self.multiprocessors)

    @property
    def special_functions(self) -> float:
        """Exponentials per second: 16 per clock and multiprocessor (CUDA's programming guide)."""
        return 16 * self.multiprocessors * self.clock_hz

    @property
    def warp_instructions(self) -> float:
        """Issued per second: four schedulers per multiprocessor, each one per clock."""
        return 4 * self.multiprocessors * self.clock_hz


GPUS = (
    Gpu(
        name="A100",
        source="NVIDIA A100 Tensor Core GPU data sheet and Ampere white paper, 80 GB SXM",
        arch=80,
        matrix_flops=312e12,
        memory_bytes=2039e9,
        vector_flops=19.5e12,
        multiprocessors=108,
        lanes=64,
        l2_bytes=40 * 2**20,
        shared_bytes=163 * 1024,
    ),
    Gpu(
        name="H100",
        source="NVIDIA H100 Tensor Core GPU data sheet and Hopper white paper, SXM5",
        arch=90,
        matrix_flops=989.4e12,
        memory_bytes=3350e9,
        vector_flops=66.9e12,
        multiprocessors=132,
        lanes=128,
        l2_bytes=50 * 2**20,
        shared_bytes=227 * 1024,
    ),
    Gpu(
        name="H200",
        source="NVIDIA H200 Tensor Core GPU data sheet, SXM; the chip is that of the H100",
        arch=90,
        matrix_flops=989.4e12,
        memory_bytes=4800e9,
        vector_flops=66.9e12,
        multiprocessors=132,
        lanes=128,
        l2_bytes=50 * 2**20,
        shared_bytes=227 * 1024,
    ),
    Gpu(
        name="B200",
        source="NVIDIA Blackwell architecture technical brief, HGX B200; 148 multiprocessors",
        arch=100,
        matrix_flops=2250e12,
        memory_bytes=8000e9,
        vector_flops=80e12,
        multiprocessors=148,
        lanes=128,
        l2_bytes=126 * 2**20,
        shared_bytes=227 * 1024,
    ),
)


class Peak(NamedTuple):
    """Peak rates of a device, by the name that torch and the driver give it."""

    pattern: str
    """Regular expression that is found in the device's name, whatever the case."""
    matrix_flops: float
    """bf16 and fp16 GEMMs with fp32 sums, without sparsity, per second."""
    vector_flops: float
    """fp32 outside GEMMs, per second."""
    source: str


_OTHERS = (
    Peak(r"H100 PCIe", 756e12, 51.2e12, "NVIDIA H100 Tensor Core GPU data sheet, PCIe"),
    Peak(r"H100 NVL", 835.5e12, 60e12, "NVIDIA H100 Tensor Core GPU data sheet, NVL"),
    Peak(r"GH200", 989.4e12, 66.9e12, "NVIDIA GH200 data sheet; the chip is that of the H100"),
    Peak(r"GB200", 2500e12, 80e12, "NVIDIA GB200 NVL72 data sheet, one GPU, without sparsity"),
    Peak(r"H200 NVL", 835.5e12, 60e12, "NVIDIA H200 Tensor Core GPU data sheet, NVL"),
    Peak(r"L40S", 362e12, 91.6e12, "NVIDIA L40S data sheet"),
    Peak(r"L4", 121e12, 30.3e12, "NVIDIA L4 data sheet; half of its figure with sparsity"),
    Peak(r"A10", 125e12, 31.2e12, "NVIDIA A10 data sheet"),
    Peak(r"A40", 149.7e12, 37.4e12, "NVIDIA A40 data sheet"),
    Peak(r"RTX 3090", 71e12, 35.6e12, "NVIDIA Ampere GA102 white paper"),
    Peak(r"RTX A6000", 154.8e12, 38.7e12, "NVIDIA Ampere GA102 white paper"),
    Peak(r"RTX 4090", 165.2e12, 82.6e12, "NVIDIA Ada white paper"),
    Peak(r"RTX 6000 Ada", 364.2e12, 91.1e12, "NVIDIA Ada white paper"),
    Peak(r"RTX 5090", 209.5e12, 104.8e12, "NVIDIA RTX Blackwell white paper"),
)
PEAKS = (
    *_OTHERS,
    *(Peak(gpu.name, gpu.matrix_flops, gpu.vector_flops, gpu.source) for gpu in GPUS),
)
"""Peaks by device name; a narrow name comes before the broad one that it contains."""
_SLOWER = r"Laptop|Mobile|Max-Q|MIG"
"""Marks a device that has the name of a faster one, or a part of it."""


def peak_flops(device_name: str, dtype: torch.dtype) -> float | None:
    """Returns the most flops per second that a device does in GEMMs of ``dtype``.

    Args:
        device_name: as ``torch.cuda.get_device_name()`` gives it, for example
            "NVIDIA H100 80GB HBM3".
        dtype: bfloat16 or float16 (tensor cores, fp32 sums, no sparsity) or float32 (no TF32).

    Returns:
        ``None`` for a device that is not in ``PEAKS``, such as a CPU or a part of a GPU (MIG), and
        for another dtype.
    """
    if re.search(rf"\b({_SLOWER})\b", device_name, re.IGNORECASE):
        return None
    for peak in PEAKS:
        if re.search(rf"\b{peak.pattern}\b", device_name, re.IGNORECASE):
            return {
                torch.bfloat16: peak.matrix_flops,
                torch.float16: peak.matrix_flops,
                torch.float32: peak.vector_flops,
            }.get(dtype)
    return None
