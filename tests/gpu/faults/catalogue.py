"""All planted faults, rung by rung."""

from . import build, cuda, ptx, triton
from .planting import Fault

FAULTS: tuple[Fault, ...] = (*triton.FAULTS, *ptx.FAULTS, *cuda.FAULTS, *build.FAULTS)
