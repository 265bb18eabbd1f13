"""Barriers in shared memory that also count bytes of copies (PTX ISA 9.7.13: mbarrier)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from .addressing import addresses_of, shared_places
from .handlers import instruction
from .program import Operand, Sink
from .step import Step

if TYPE_CHECKING:
    from .machine import Machine


@dataclass
class Mbarrier:
    count: int
    """Arrivals that complete a phase."""
    pending: int
    """Arrivals that are missing in this one."""
    bytes_missing: int = 0
    phase: int = 0
    copies: list[Callable[[], None]] = field(default_factory=list)
    """Copies in flight whose bytes it counts."""


class Mbarriers:
    """All mbarriers, by their place in shared memory, and the threads that wait."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._at: dict[int, Mbarrier] = {}
        self.waiting = np.zeros(machine.lanes, bool)
        self._place = np.zeros(machine.lanes, np.int64)

    def init(self, step: Step, lane: int, place: int, count: int) -> None:
        if not 0 < count < 1 << 20:
            raise step.fault(f"an mbarrier for {count} arrivals", lane)
        self._at[place] = Mbarrier(count, count)

    def invalidate(self, step: Step, lane: int, place: int) -> None:
        if self.find(step, lane, place).copies:
            raise step.fault("an mbarrier is invalidated while its copies are in flight", lane)
        del self._at[place]

    def find(self, step: Step, lane: int, place: int) -> Mbarrier:
        if place not in self._at:
            raise step.fault("no mbarrier was initialised at this address", lane)
        return self._at[place]

    def arrive(self, step: Step, lane: int, place: int, count: int, expected_bytes: int) -> int:
        """Returns the phase that was arrived in."""
        barrier = self.find(step, lane, place)
        phase = barrier.phase
        barrier.bytes_missing += expected_bytes
        barrier.pending -= count
        if barrier.pending < 0:
            raise step.fault("more arrivals at an mbarrier than its count", lane)
        if self._machine.clocks:
            self._machine.clocks.arrive(place, one_lane(self._machine, lane))
        self._advance(place)
        return phase

    def expect(self, step: Step, lane: int, place: int, expected_bytes: int) -> None:
        self.find(step, lane, place).bytes_missing += expected_bytes

    def start_copy(
        self, step: Step, lane: int, place: int, size: int, land: Callable[[], None]
    ) -> None:
        """Reports a copy of ``size`` bytes to the barrier, at once or when nothing else runs."""
        barrier = self.find(step, lane, place)

        def arrive() -> None:
            land()
            barrier.bytes_missing -= size
            self._advance(place)

        if self._machine.clocks:
            self._machine.clocks.arrive(place, one_lane(self._machine, lane))
        if self._machine.conditions.late_copies:
            barrier.copies.append(arrive)
        else:
            arrive()

    def land_next(self, random: np.random.Generator | None) -> bool:
        """Completes one of the copies in flight. True: there was one."""
        places = [place for place, barrier in self._at.items() if barrier.copies]
        if not places:
            return False
        place = places[0] if random is None else int(random.choice(places))
        copies = self._at[place].copies
        copies.pop(0 if random is None else int(random.integers(len(copies))))()
        return True

    def complete(self, place: int, parity: int) -> bool:
        """Whether the phase of that parity, the current one or the one before, is over."""
        return self._at[place].phase & 1 != parity & 1

    def wait(self, lanes: np.ndarray, places: np.ndarray) -> None:
        self.waiting[lanes] = True
        self._place[lanes] = places

    def acquire(self, lanes: np.ndarray, places: np.ndarray) -> None:
        """These lanes have seen a phase end."""
        m = self._machine
        if m.clocks:
            for place in np.unique(places).tolist():
                mask = np.zeros(m.lanes, bool)
                mask[lanes[places == place]] = True
                m.clocks.acquire(place, mask)

    def _advance(self, place: int) -> None:
        barrier = self._at[place]
        if barrier.pending == 0 and barrier.bytes_missing == 0:
            barrier.phase += 1
            barrier.pending = barrier.count
            self.waiting &= self._place != place
            self._machine.scheduler.note_progress()


def one_lane(m: Machine, lane: int) -> np.ndarray:
    mask = np.zeros(m.lanes, bool)
    mask[lane] = True
    return mask


def places_of(step: Step, operand: Operand) -> np.ndarray:
    """The mbarriers that the active lanes name."""
    cluster = "shared::cluster" in step.instruction.modifiers
    return shared_places(step, step.active, addresses_of(step, operand), 8, cluster=cluster)


_KNOWN = (
    "init inval arrive expect_tx try_wait test_wait parity shared shared::cta shared::cluster"
    " acquire release relaxed cta cluster noComplete"
)


@instruction("mbarrier", modifiers=_KNOWN)
def mbarrier(step: Step) -> bool | None:
    name = step.instruction.parts[1]
    if name in ("try_wait", "test_wait"):
        return _wait(step)
    if name == "arrive":
        _arrive(step)
        return None
    address, *operands = step.instruction.operands
    places = places_of(step, address)
    value = step.spread(step.read(operands[0], "u32")) if operands else None
    step.require_defined("a count")
    for lane, place in zip(step.active.tolist(), places.tolist(), strict=True):
        barriers = step.machine.mbarriers
        if name == "inval":
            barriers.invalidate(step, lane, place)
        elif name == "init":
            assert value is not None
            barriers.init(step, lane, place, int(value[lane]))
        else:
            assert value is not None
            barriers.expect(step, lane, place, int(value[lane]))
    return None


def _arrive(step: Step) -> None:
    destination, address, *operands = step.instruction.operands
    places = places_of(step, address)
    value = step.spread(step.read(operands[0], "u32")) if operands else None
    step.require_defined("a count")
    expects = "expect_tx" in step.instruction.modifiers
    states = np.zeros(step.machine.lanes, np.uint64)
    for lane, place in zip(step.active.tolist(), places.tolist(), strict=True):
        count = 1 if expects or value is None else int(value[lane])
        expected = int(value[lane]) if expects and value is not None else 0
        states[lane] = step.machine.mbarriers.arrive(step, lane, place, count, expected)
    if not isinstance(destination, Sink):
        step.write_apart(destination, states, None)


def _wait(step: Step) -> bool | None:
    """``try_wait`` sleeps until the phase is over, as it may; ``test_wait`` only looks."""
    destination, address, phase, *_ = step.instruction.operands
    kind = "u32" if "parity" in step.instruction.modifiers else "u64"
    parity = step.spread(step.read(phase, kind))[step.mask].astype(np.int64)
    step.require_defined("a phase")
    m = step.machine
    places = places_of(step, address)
    done = np.zeros(len(places), bool)
    for index, lane in enumerate(step.active.tolist()):
        m.mbarriers.find(step, lane, int(places[index]))
        done[index] = m.mbarriers.complete(int(places[index]), int(parity[index]))
    m.mbarriers.acquire(step.active[done], places[done])
    if done.all() or step.instruction.parts[1] == "test_wait":
        result = np.zeros(m.lanes, bool)
        result[step.active] = done
        step.write_apart(destination, result, None)
        return None
    # All lanes execute it again; those that need not wait, at once.
    m.pc[step.arrived] = step.number
    m.mbarriers.wait(step.active[~done], places[~done])
    m.uncount(step)
    return True
