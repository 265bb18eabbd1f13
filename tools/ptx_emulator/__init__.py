"""Runs PTX on the CPU, a warp's lanes as elements of numpy arrays. See README.md."""

from .counts import Counts
from .errors import EmulatorError, KernelFault, Unsupported
from .launch import Argument, Conditions, Geometry, launch
from .memory import Buffer, GlobalMemory
from .parser import entries, parse
from .program import Kernel

__all__ = [
    "Argument",
    "Buffer",
    "Conditions",
    "Counts",
    "EmulatorError",
    "Geometry",
    "GlobalMemory",
    "Kernel",
    "KernelFault",
    "Unsupported",
    "entries",
    "launch",
    "parse",
]
