"""All planted faults, rung by rung."""

from . import triton
from .cuda import CUDA_FAULTS
from .planting import Fault

FAULTS: tuple[Fault, ...] = (*triton.FAULTS, *CUDA_FAULTS)
