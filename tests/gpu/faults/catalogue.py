"""All planted faults, rung by rung."""

from . import triton
from .cuda import CUDA_FAULTS
from .planting import Fault
from .ptx import PTX_FAULTS

FAULTS: tuple[Fault, ...] = (*triton.FAULTS, *CUDA_FAULTS, *PTX_FAULTS)
