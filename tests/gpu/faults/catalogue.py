"""All planted faults, rung by rung."""

from .planting import Fault

FAULTS: tuple[Fault, ...] = ()
