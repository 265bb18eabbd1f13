"""Clusters of blocks: their barrier, and addresses in each other's shared memory (PTX ISA 5.1.9,
9.7.9: mapa, 9.7.13: barrier.cluster)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .handlers import instruction
from .shared import CLUSTER_SHIFT
from .step import Step

if TYPE_CHECKING:
    from .machine import Machine


class ClusterBarriers:
    """The barrier of each cluster, in two halves. Threads that have ended count as arrived."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.waiting = np.zeros(machine.lanes, bool)
        self._arrived = np.zeros(machine.lanes, bool)

    def execute(self, step: Step) -> bool | None:
        if "arrive" in step.instruction.modifiers:
            self._arrive(step)
            return None
        return self._wait(step)

    def _arrive(self, step: Step) -> None:
        early = step.mask & self._arrived
        if early.any():
            lane = int(np.argmax(early))
            raise step.fault("a thread arrives twice without waiting in between", lane)
        self._arrived |= step.mask
        if self._machine.clocks:
            self._machine.clocks.arrive("cluster", step.mask)

    def _wait(self, step: Step) -> bool:
        strange = step.mask & ~self._arrived
        if strange.any():
            lane = int(np.argmax(strange))
            raise step.fault("a thread waits for a barrier that it has not arrived at", lane)
        step.proceed()
        self.waiting |= step.mask
        return True

    def release(self) -> bool:
        """Releases the clusters in which every thread waits or has arrived. True: there were some.

        Called when nothing else can run: a complete phase stays complete, because no thread arrives
        again before it has waited.
        """
        m = self._machine
        size = m.block_lanes * m.geometry.cluster_blocks
        complete = (self._arrived | ~m.alive).reshape(-1, size).all(1)
        released = np.repeat(complete, size) & self.waiting
        if not released.any():
            return False
        self.waiting &= ~released
        self._arrived &= ~released
        if m.clocks:
            m.clocks.acquire("cluster", released)
        m.scheduler.note_progress()
        return True


@instruction("mapa", modifiers="shared::cluster")
def map_address(step: Step) -> None:
    """The same variable in another block of the cluster; a generic address if no space is named."""
    destination, source, rank = step.instruction.operands
    kind = step.instruction.kind
    address, block = step.read(source, kind), step.spread(step.read(rank, "u32"))
    if (block[step.mask] >= step.machine.geometry.cluster_blocks).any():
        lane = int(np.argmax(step.mask & (block >= step.machine.geometry.cluster_blocks)))
        raise step.fault(f"block {int(block[lane])} of the cluster, which has fewer", lane)
    window = (block.astype(address.dtype) + address.dtype.type(1)) << address.dtype.type(
        CLUSTER_SHIFT
    )
    step.write(destination, address | window)
