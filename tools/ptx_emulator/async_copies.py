"""Asynchronous copies of threads, ``cp.async`` (PTX ISA 9.7.9)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .addressing import (
    addresses_of,
    count_wavefronts,
    load_global,
    require_landed,
    shared_places,
)
from .handlers import instruction
from .program import Immediate
from .step import Step
from .tensor_copies import bulk_copy
from .values import Undefined

if TYPE_CHECKING:
    from .machine import Machine


@dataclass
class _Copy:
    """The bytes that one instruction has in flight, by lane."""

    step: Step
    lanes: np.ndarray
    groups: np.ndarray
    """The number of the group that each lane's copy belongs to."""
    places: np.ndarray
    content: np.ndarray
    """[lanes, bytes]"""
    holes: np.ndarray | None


class AsyncCopies:
    """Copies that have not been waited for, oldest first. Each thread counts its own groups."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._pending: list[_Copy] = []
        self._committed = np.zeros(machine.lanes, np.int32)

    def start(
        self, step: Step, places: np.ndarray, content: np.ndarray, holes: np.ndarray | None
    ) -> None:
        m = self._machine
        lanes = step.active
        copy = _Copy(step, lanes, self._committed[lanes], places, content, holes)
        self._note(copy, np.ones(len(lanes), bool))
        m.shared.store(places, content, holes)
        if m.conditions.late_copies:
            m.shared.poison(places, content.shape[1], Undefined.IN_FLIGHT)
        self._pending.append(copy)

    def commit(self, mask: np.ndarray) -> None:
        self._committed[mask] += 1

    def wait(self, mask: np.ndarray, but: int | None) -> None:
        """Completes the copies of these lanes, except their ``but`` latest groups. ``None``
        completes the group that is not committed yet as well."""
        for copy in self._pending:
            landed = mask[copy.lanes]
            if but is not None:
                landed = landed & (copy.groups < self._committed[copy.lanes] - but)
            if landed.any():
                self._note(copy, landed)
                if self._machine.conditions.late_copies:
                    missing = None if copy.holes is None else copy.holes[landed]
                    self._machine.shared.store(copy.places[landed], copy.content[landed], missing)
                stay = ~landed
                copy.lanes, copy.groups = copy.lanes[stay], copy.groups[stay]
                copy.places, copy.content = copy.places[stay], copy.content[stay]
                copy.holes = None if copy.holes is None else copy.holes[stay]
        self._pending = [copy for copy in self._pending if len(copy.lanes)]

    def _note(self, copy: _Copy, chosen: np.ndarray) -> None:
        """The bytes may arrive at any time from the copy to the wait, so races count at both."""
        races = self._machine.races
        if races:
            content = copy.content[chosen]
            places, size = copy.places[chosen], content.shape[1]
            races.write(copy.step, copy.lanes[chosen], places, size, content)


_KNOWN = frozenset(
    "async ca cg shared shared::cta global L2::64B L2::128B L2::256B L2::cache_hint"
    " commit_group wait_group wait_all".split()
)


@instruction("cp", modifiers=None)
def copy_asynchronously(step: Step) -> None:
    ins = step.instruction
    if "bulk" in ins.modifiers or "reduce" in ins.modifiers:
        bulk_copy(step)
        return
    if ins.modifiers - _KNOWN:
        raise step.unsupported()
    copies = step.machine.copies
    if "commit_group" in ins.modifiers:
        copies.commit(step.mask)
    elif "wait_all" in ins.modifiers:
        copies.wait(step.mask, None)
    elif "wait_group" in ins.modifiers:
        copies.wait(step.mask, step.uniform(ins.operands[0], "u32"))
    else:
        _start(step)


def _start(step: Step) -> None:
    """Bytes from the source's size on are zeros, and are not read."""
    target, source, size, *rest = step.instruction.operands
    assert isinstance(size, Immediate)
    total = int(size.text, 0)
    places = shared_places(step, step.active, addresses_of(step, target), total)
    addresses = addresses_of(step, source)
    sizes = np.full(len(addresses), total)
    has_hint = "L2::cache_hint" in step.instruction.modifiers
    if len(rest) > has_hint:
        sizes = step.spread(step.read(rest[0], "u32"))[step.mask].astype(np.int64)
        step.require_defined("a size")
    content = np.zeros((len(addresses), total), np.uint8)
    holes = np.zeros(content.shape, np.uint8)
    if (addresses % np.uint64(total)).any():
        wrong = int(np.argmax(addresses % np.uint64(total) != 0))
        raise step.fault(f"misaligned: a copy of {total} bytes", int(step.active[wrong]))
    for width in np.unique(sizes).tolist():
        part = np.nonzero(sizes == width)[0]
        if width == 0:
            continue
        unit = min(8, width & -width)
        found, missing = load_global(step, step.active[part], addresses[part], unit, width // unit)
        content[part, :width] = np.ascontiguousarray(found).view(np.uint8).reshape(len(part), -1)
        if missing is not None:
            holes[part, :width] = np.repeat(missing, unit, axis=1)
    count_wavefronts(step, step.active, places, total)
    require_landed(step, step.active, places, total)
    step.machine.copies.start(step, places, content, holes if holes.any() else None)
