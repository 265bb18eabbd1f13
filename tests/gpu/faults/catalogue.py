"""All planted faults, rung by rung."""

from . import cuda, ptx, triton
from .planting import Fault

FAULTS: tuple[Fault, ...] = (*triton.FAULTS, *ptx.FAULTS, *cuda.FAULTS)
