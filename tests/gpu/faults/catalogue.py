"""All planted faults, rung by rung."""

from .cuda import CUDA_FAULTS
from .planting import Fault

FAULTS: tuple[Fault, ...] = CUDA_FAULTS
