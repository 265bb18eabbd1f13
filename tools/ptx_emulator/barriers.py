"""Barriers of a block (PTX ISA 9.7.13: bar, barrier)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .handlers import instruction
from .step import Step

if TYPE_CHECKING:
    from .machine import Machine

_BARRIERS = 16


class Barriers:
    """How many threads have arrived at each of a block's sixteen barriers, and who waits.

    A barrier of all threads of the block also counts those that have ended. No thread passes it
    once one has ended, and the scheduler reports the threads that wait.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.waiting = np.zeros(machine.lanes, bool)
        self._barrier = np.zeros(machine.lanes, np.int8)
        self._arrived = np.zeros((machine.blocks, _BARRIERS), np.int32)
        self._expected = np.zeros((machine.blocks, _BARRIERS), np.int32)
        self._condition = np.zeros(machine.lanes, bool)

    def arrive(self, step: Step, number: int, expected: int | None, *, wait: bool) -> None:
        m = self._machine
        threads = m.geometry.threads if expected is None else expected
        blocks = np.unique(m.block_of[step.mask])
        open_now = self._arrived[blocks, number] > 0
        if (open_now & (self._expected[blocks, number] != threads)).any():
            raise step.fault("threads expect different numbers at one barrier", int(step.active[0]))
        self._expected[blocks, number] = threads
        arrivals = np.bincount(m.block_of[step.mask], minlength=m.blocks)
        self._arrived[:, number] += arrivals.astype(np.int32)
        if (self._arrived[blocks, number] > threads).any():
            raise step.fault(f"more threads than the {threads} of the barrier", int(step.active[0]))
        if m.clocks:
            m.clocks.arrive(("barrier", number), step.mask)
        if wait:
            self.waiting |= step.mask
            self._barrier[step.mask] = number
        complete = blocks[self._arrived[blocks, number] == threads]
        if complete.size:
            self._release(complete, number)

    def _release(self, blocks: np.ndarray, number: int) -> None:
        m = self._machine
        self._arrived[blocks, number] = 0
        in_block = np.isin(m.block_of, blocks)
        released = self.waiting & in_block & (self._barrier == number)
        self.waiting &= ~released
        if m.clocks:
            m.clocks.acquire(("barrier", number), released)
        m.scheduler.note_progress()


@instruction(
    "bar", "barrier", modifiers="sync arrive aligned warp cta cluster release acquire relaxed wait"
)
def barrier(step: Step) -> bool | None:
    modifiers = step.instruction.modifiers
    if "cluster" in modifiers:
        return step.machine.cluster.execute(step)
    if "warp" in modifiers:
        return None  # the machine has already waited for all lanes, which is all that it does
    number, *count = step.instruction.operands
    expected = step.uniform(count[0], "u32") if count else None
    if expected is not None and expected % 32:
        raise step.fault(f"a barrier for {expected} threads, which are not whole warps")
    step.proceed()
    step.machine.barriers.arrive(
        step, step.uniform(number, "u32"), expected, wait="arrive" not in modifiers
    )
    return True
