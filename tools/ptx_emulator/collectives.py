"""Which instructions lanes execute as a group, and which lanes these are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .program import Instruction, Operand
from .step import Step

if TYPE_CHECKING:
    from .machine import Machine

_NAMING_LANES = {"shfl", "vote", "match", "redux", "elect"}
"""Instructions whose last operand says which lanes take part."""


def group_size(ins: Instruction) -> int:
    """128 for warpgroups, 32 for warps, 0 where each lane executes for itself."""
    if ins.parts[0] == "wgmma" and ins.parts[1] == "mma_async":
        return 128
    if ins.parts[0] == "bar" or "aligned" in ins.modifiers or ins.parts[0] in _NAMING_LANES:
        return 32
    return 0


def _member_mask(ins: Instruction) -> Operand | None:
    """The operand that names the lanes; without one the whole warp takes part."""
    if ins.parts[0] in _NAMING_LANES:
        return ins.operands[-1]
    if ins.parts[:2] == ("bar", "warp"):
        return ins.operands[0]
    return None


def required_lanes(m: Machine, ins: Instruction, present: np.ndarray, group: int) -> np.ndarray:
    """The lanes that must arrive before any of ``present`` goes on; those that have ended need not
    (CUDA C++ Programming Guide, warp vote and shuffle functions)."""
    touched = np.repeat(present.reshape(-1, group).any(1), group) & m.alive
    operand = _member_mask(ins)
    if operand is None:
        return touched
    step = Step(m, ins, 0, present, present, False)
    mask = step.spread(step.read(operand, "u32"))
    step.require_defined("the mask of lanes")
    own = mask >> (m.thread % 32).astype(np.uint32) & np.uint32(1)
    if (present & (own == 0)).any():
        lane = int(np.argmax(present & (own == 0)))
        raise step.fault("a lane that its own mask leaves out executes this", lane)
    # Every lane named by one that is here; each of these names itself.
    bits = np.where(present, mask, np.uint32(0)).reshape(-1, 32)
    named = np.repeat(np.bitwise_or.reduce(bits, axis=1), 32)
    return touched & (named >> (m.thread % 32).astype(np.uint32) & np.uint32(1) != 0)
