"""All planted faults, rung by rung."""

from . import cuda, triton
from .planting import Fault

FAULTS: tuple[Fault, ...] = (*triton.FAULTS, *cuda.FAULTS)
