"""Accesses that no barrier orders.

Each warp has a vector clock over the warps of its cluster, and each barrier joins the clocks of the
warps that pass it. If different warps access one place and one of them writes, these clocks must
order the two accesses. A pair without an order is reported even if this schedule happened to run it
in the right order. Warps of different clusters are never ordered. Kernels that order their blocks
themselves (fences, relaxed and stronger accesses) are exempt from checks between clusters.

Lanes of one warp count as ordered. One instruction may write the same value to one place from
several warps: layouts that hold values twice do so, and every order gives the same result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from .memory import Buffer
from .program import Kernel
from .step import Step
from .values import DTYPES

if TYPE_CHECKING:
    from .machine import Machine

_NOBODY = -1
_SEVERAL = -2


class Clocks:
    """Vector clocks of the warps in flight; a warp's column is its number within its cluster."""

    def __init__(self, machine: Machine) -> None:
        geometry = machine.geometry
        self.columns = geometry.warps * geometry.cluster_blocks
        self._block_warps = geometry.warps
        self._blocks = machine.blocks
        total = machine.lanes // 32
        own = np.arange(total)
        self.of_warp = np.zeros((total, self.columns), np.int32)
        self.of_warp[own, own % self.columns] = 1
        self._objects: dict[object, np.ndarray] = {}

    def arrive(self, key: object, mask: np.ndarray) -> None:
        """These lanes' warps release their accesses to all that acquire ``key``. Each block has its
        own ``key``, each cluster its own "cluster"."""
        joined, warps = self._object(key), _warps(mask)
        np.maximum.at(joined, self._owner(key, warps), self.of_warp[warps])
        self.of_warp[warps, warps % self.columns] += 1

    def acquire(self, key: object, mask: np.ndarray) -> None:
        joined, warps = self._object(key), _warps(mask)
        self.of_warp[warps] = np.maximum(self.of_warp[warps], joined[self._owner(key, warps)])

    def _object(self, key: object) -> np.ndarray:
        if key not in self._objects:
            self._objects[key] = np.zeros((self._blocks, self.columns), np.int32)
        return self._objects[key]

    def _owner(self, key: object, warps: np.ndarray) -> np.ndarray:
        return warps // (self.columns if key == "cluster" else self._block_warps)


def _warps(mask: np.ndarray) -> np.ndarray:
    return np.nonzero(mask.reshape(-1, 32).any(1))[0]


class Shadow:
    """Who accessed each place of some memory, and when."""

    def __init__(
        self,
        kernel: Kernel,
        size: int,
        columns: int,
        spaces: frozenset[str],
        name: Callable[[int], str],
    ) -> None:
        """``name`` says for messages what lies at an offset."""
        self._name = name
        self._granule = _granule(kernel, spaces)
        places = -(-size // self._granule)
        self._instructions = kernel.instructions
        self._writer = np.full(places, _NOBODY, np.int16)
        self._write_clock = np.zeros(places, np.int32)
        self._write_line = np.zeros(places, np.int32)
        self._write_atomic = np.zeros(places, bool)
        self._write_cluster = np.full(places, _NOBODY, np.int32)
        self._read_clock = np.zeros((places, columns), np.int32)
        self._read_cluster = np.full(places, _NOBODY, np.int32)

    def note(
        self,
        step: Step,
        lanes: np.ndarray,
        offsets: np.ndarray,
        size: int,
        *,
        write: bool,
        atomic: bool = False,
        same: np.ndarray | None = None,
        known: np.ndarray | None = None,
        between_clusters: bool = True,
    ) -> None:
        """Checks an access of ``size`` bytes a lane against those before it, and remembers it.

        Args:
            step: for messages and clocks.
            lanes: the accessing lanes.
            offsets: where each accesses, in bytes.
            size: of each access.
            write: or a read.
            atomic: a write that may coincide with other atomic ones.
            same: which lanes write the value that is there already.
            known: the clocks to check by, if the access may have happened before now.
            between_clusters: whether accesses of different clusters are compared.
        """
        m = step.machine
        clocks = m.clocks
        assert clocks is not None
        places = (offsets // self._granule)[:, None] + np.arange(max(1, size // self._granule))
        warps = m.warp_of[lanes]
        columns = warps % clocks.columns
        cluster = m.block_numbers[m.block_of[lanes]] // m.geometry.cluster_blocks
        clock = (clocks.of_warp if known is None else known)[warps]
        foreign = self._write_cluster[places] != cluster[:, None]
        writer = self._writer[places]
        seen = np.take_along_axis(clock, np.maximum(writer, 0).astype(np.int64), 1)
        unordered = (writer != columns[:, None]) & (self._write_clock[places] > seen)
        late = (writer != _NOBODY) & np.where(foreign, between_clusters, unordered)
        if same is not None:
            late &= ~(same[:, None] & (self._write_line[places] == step.number))
        if atomic:
            late &= ~self._write_atomic[places]
        if late.any():
            self._report(step, lanes, places, late, written=True)
        own_clock = clocks.of_warp[warps, columns][:, None]
        if write:
            self._check_readers(step, lanes, places, cluster, clock, between_clusters)
            self._writer[places] = columns[:, None]
            self._write_clock[places] = own_clock
            self._write_line[places] = step.number
            self._write_atomic[places] = atomic
            self._write_cluster[places] = cluster[:, None]
        else:
            reader = self._read_cluster[places]
            fresh = (reader == _NOBODY) | (reader == cluster[:, None])
            self._read_cluster[places] = np.where(fresh, cluster[:, None], _SEVERAL)
            self._read_clock[places, columns[:, None]] = own_clock

    def _check_readers(
        self,
        step: Step,
        lanes: np.ndarray,
        places: np.ndarray,
        cluster: np.ndarray,
        clock: np.ndarray,
        between_clusters: bool,
    ) -> None:
        reader = self._read_cluster[places]
        unordered = (self._read_clock[places] > clock[:, None, :]).any(2)
        foreign = (reader != cluster[:, None]) & between_clusters
        late = (reader != _NOBODY) & np.where(reader == cluster[:, None], unordered, foreign)
        if late.any():
            self._report(step, lanes, places, late, written=False)

    def _report(
        self, step: Step, lanes: np.ndarray, places: np.ndarray, late: np.ndarray, *, written: bool
    ) -> None:
        row, column = (int(i[0]) for i in np.nonzero(late))
        place = places[row, column]
        before = "was read by another warp"
        if written:
            other = self._instructions[int(self._write_line[place])]
            before = f"was written by warp {int(self._writer[place])}, {other}\n "
        lane = int(lanes[row])
        raise step.fault(
            f"race: {self._name(int(place) * self._granule)} {before} with no barrier in between",
            lane,
        )


def _granule(kernel: Kernel, spaces: frozenset[str]) -> int:
    """Bytes of the narrowest access: what is tracked as one place."""
    widths = [4]
    for ins in kernel.instructions:
        named = ins.modifiers & frozenset(("global", "shared", "shared::cta", "shared::cluster"))
        if ins.parts[0] in ("ld", "st") and ins.kind in DTYPES and (named & spaces or not named):
            widths.append(DTYPES[ins.kind].itemsize)
        if ins.parts[0] in ("ldmatrix", "stmatrix", "wgmma"):
            widths.append(2)
    return min(widths)


_SHARED = frozenset(("shared", "shared::cta", "shared::cluster"))
_GLOBAL = frozenset(("global",))


class SharedRaces:
    def __init__(self, machine: Machine, columns: int) -> None:
        memory = machine.shared
        self._memory = memory
        self._shadow = Shadow(
            machine.kernel,
            size=memory.content.size,
            columns=columns,
            spaces=_SHARED,
            name=lambda offset: f"shared memory at {offset % memory.pitch:#x}",
        )

    def read(
        self,
        step: Step,
        lanes: np.ndarray,
        places: np.ndarray,
        size: int,
        known: np.ndarray | None = None,
    ) -> None:
        self._shadow.note(step, lanes, places, size, write=False, known=known)

    def write(
        self, step: Step, lanes: np.ndarray, places: np.ndarray, size: int, bits: np.ndarray | None
    ) -> None:
        """Notes a write of ``bits`` [lanes, elements]; ``None``: an atomic operation."""
        same = _same(self._memory.content, places, size, bits)
        self._shadow.note(step, lanes, places, size, write=True, atomic=bits is None, same=same)
        if bits is not None:
            _check_collision(step, lanes, places, bits)


class GlobalRaces:
    """Of a whole launch: its blocks are unordered even if they run one after another."""

    def __init__(self, kernel: Kernel, columns: int) -> None:
        self._kernel = kernel
        self._columns = columns
        self._shadows: dict[Buffer, Shadow] = {}
        self._blocks_apart = not any(
            (ins.parts[0] in ("membar", "fence") and "proxy" not in ins.parts)
            or (ins.parts[0] in ("ld", "st") and ins.modifiers & _STRONG)
            for ins in kernel.instructions
        )

    def read(
        self, step: Step, lanes: np.ndarray, buffer: Buffer, offsets: np.ndarray, size: int
    ) -> None:
        if not buffer.read_only:
            self._shadow(buffer).note(
                step, lanes, offsets, size, write=False, between_clusters=self._blocks_apart
            )

    def write(
        self,
        step: Step,
        lanes: np.ndarray,
        buffer: Buffer,
        offsets: np.ndarray,
        size: int,
        bits: np.ndarray | None,
    ) -> None:
        self._shadow(buffer).note(
            step,
            lanes,
            offsets,
            size,
            write=True,
            atomic=bits is None,
            same=_same(buffer.content, offsets, size, bits),
            between_clusters=self._blocks_apart,
        )
        if bits is not None:
            _check_collision(step, lanes, offsets, bits)

    def _shadow(self, buffer: Buffer) -> Shadow:
        if buffer not in self._shadows:
            size = buffer.content.size
            self._shadows[buffer] = Shadow(
                self._kernel,
                size=size,
                columns=self._columns,
                spaces=_GLOBAL,
                name=lambda offset: f"byte {offset - buffer.front} of `{buffer.name}`",
            )
        return self._shadows[buffer]


_STRONG = frozenset(("relaxed", "acquire", "release", "volatile"))


def _same(
    content: np.ndarray, offsets: np.ndarray, size: int, bits: np.ndarray | None
) -> np.ndarray | None:
    if bits is None:
        return None
    held = content[offsets[:, None] + np.arange(size)]
    return (held == np.ascontiguousarray(bits).view(np.uint8).reshape(held.shape)).all(1)


def _check_collision(step: Step, lanes: np.ndarray, offsets: np.ndarray, bits: np.ndarray) -> None:
    """No two lanes of one instruction may write different values to one place."""
    octets = np.ascontiguousarray(bits).view(np.uint8).reshape(len(lanes), -1)
    order = np.argsort(offsets, kind="stable")
    twice = np.diff(offsets[order]) == 0
    if not twice.any():
        return
    wrong = twice & (octets[order[1:]] != octets[order[:-1]]).any(1)
    if wrong.any():
        lane = int(lanes[order[int(np.argmax(wrong))]])
        raise step.fault("race: two threads write different values to one place", lane)
