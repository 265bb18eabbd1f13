"""All planted faults, rung by rung."""

from . import triton
from .planting import Fault

FAULTS: tuple[Fault, ...] = triton.FAULTS
