"""Compiles the package's Triton kernels for a target, without a GPU.

    for launch in compiled("hybrid_rows/fp32-bf16", "sm_90a"):
        launch.asm["ptx"], launch.metadata.shared, launch.grid, launch.threads, launch.arguments

To run the compiled code on tensors of one's own, call the launcher under ``driver_for``:

    with driver_for("sm_80", emulate):     # emulate(launch) reads and writes the tensors that
        backend.row_stats(chunk)           # launch.arguments names
"""

import functools

from .cases import CASES
from .recording import Argument, Launch, driver_for, recorded
from .targets import TARGETS, Target

__all__ = ["CASES", "TARGETS", "Argument", "Launch", "Target", "compiled", "driver_for", "recorded"]


@functools.cache
def compiled(case: str, target: str) -> tuple[Launch, ...]:
    """Every kernel that the case launches, compiled for the target, in the order of launching.

    Args:
        case: a key of ``CASES``.
        target: a key of ``TARGETS``.
    """
    with recorded(target) as launches:
        CASES[case]()
    return tuple(launches)
