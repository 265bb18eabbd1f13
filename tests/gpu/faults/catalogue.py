"""All planted faults, rung by rung."""

from . import build, cuda, cuda_tables, ptx, triton
from .planting import Fault

FAULTS: tuple[Fault, ...] = (
    *triton.FAULTS,
    *ptx.FAULTS,
    *cuda.FAULTS,
    *cuda_tables.FAULTS,
    *build.FAULTS,
)
