"""All planted faults, rung by rung."""

from . import build, chunks, cuda, cuda_tables, ptx, triton
from .planting import Fault

FAULTS: tuple[Fault, ...] = (
    *triton.FAULTS,
    *ptx.FAULTS,
    *cuda.FAULTS,
    *cuda_tables.FAULTS,
    *chunks.FAULTS,
    *build.FAULTS,
)
