"""Decides which lanes run next.

Within a warp the lanes that are furthest back run first, so that diverged lanes meet again where
their paths do. There are two schedules of warps. All together is fast: one numpy operation serves
every warp that stands at the same instruction. One warp of each block at a time, in a random order,
lets warps run ahead of each other as far as barriers allow; blocks still run side by side, unless
the conditions run them apart too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .errors import KernelFault

if TYPE_CHECKING:
    from .machine import Machine

_REDRAW_AFTER = 48
"""Turns after which a new random order is drawn, so that a warp that polls memory lets the warp
run that it waits for."""
_RELIEF_EVERY = 32
"""In the other schedule, the warps furthest ahead run every so often, for the same reason."""
_NOWHERE = np.iinfo(np.int32).max
_TURN_LIMIT = 1_000_000
"""A launch is given up after so many turns in which no barrier was passed and no thread ended."""


class Scheduler:
    def __init__(self, machine: Machine, seed: int | None) -> None:
        self._machine = machine
        self._random = None if seed is None else np.random.default_rng(seed)
        self._turn = 0
        self._last_progress = 0
        self._draw()

    def note_progress(self) -> None:
        """Notes progress that waiting threads may depend on."""
        self._last_progress = self._turn
        self._draw()

    def _draw(self) -> None:
        if self._random is not None:
            self._rank = self._random.permutation(self._machine.geometry.warps)
            self._block_rank = self._random.permutation(self._machine.blocks)
            self._redraw_at = self._turn + int(self._random.integers(1, _REDRAW_AFTER))

    def next(self) -> np.ndarray | None:
        """Lanes at one instruction, or ``None`` when all threads have ended."""
        m = self._machine
        while True:
            waiting = m.barriers.waiting | m.cluster.waiting | m.parked | m.mbarriers.waiting
            runnable = m.alive & ~waiting
            if runnable.any():
                break
            # Nothing goes on by itself: release a cluster that has arrived, or complete a copy.
            if not (m.cluster.release() or m.mbarriers.land_next(self._random)):
                if m.alive.any():
                    raise KernelFault(self._deadlock())
                return None
        self._turn += 1
        if self._turn - self._last_progress > _TURN_LIMIT:
            raise KernelFault(f"no barrier passed and no thread ended in {_TURN_LIMIT} turns")
        if self._random is None:
            return self._together(runnable)
        return self._apart(runnable)

    def _together(self, runnable: np.ndarray) -> np.ndarray:
        pc = self._machine.pc
        if self._turn % _RELIEF_EVERY:
            return runnable & (pc == pc[runnable].min())
        back = _furthest_back(pc, runnable, 32)
        ahead = back[back != _NOWHERE].max()
        return runnable & (pc == ahead) & np.repeat(back == ahead, 32)

    def _apart(self, runnable: np.ndarray) -> np.ndarray:
        """The first runnable warp of each block, in the blocks where it stands at one place."""
        m = self._machine
        assert self._random is not None
        if self._turn >= self._redraw_at:
            self._draw()
        warps = runnable.reshape(m.blocks, -1, 32).any(2)
        first = np.where(warps, self._rank, -1).argmax(1)
        chosen = np.zeros(warps.shape, bool)
        chosen[np.arange(m.blocks), first] = warps.any(1)
        lanes = runnable & np.repeat(chosen.reshape(-1), 32)
        back = _furthest_back(m.pc, lanes, m.block_lanes)
        if m.conditions.blocks_apart:
            first_block = int(np.where(back != _NOWHERE, self._block_rank, -1).argmax())
            return lanes & (m.pc == back[first_block]) & (m.block_of == first_block)
        place = self._random.choice(back[back != _NOWHERE])
        return lanes & (m.pc == place) & np.repeat(back == place, m.block_lanes)

    def _deadlock(self) -> str:
        """Who waits where, in the first block that cannot go on."""
        m = self._machine
        block = int(m.block_of[np.argmax(m.alive)])
        inside = m.block_of == block
        lines = [f"threads wait forever in block {int(m.block_numbers[block])}:"]
        for what, waiting, back in (
            ("at a barrier", m.barriers.waiting, 1),
            ("at the cluster's barrier", m.cluster.waiting, 1),
            ("for the other lanes of their group", m.parked, 0),
            ("for an mbarrier's phase", m.mbarriers.waiting, 0),
        ):
            here = inside & waiting & m.alive
            for number in np.unique(m.pc[here]).tolist():
                threads = m.thread[here & (m.pc == number)]
                ins = m.kernel.instructions[number - back]
                lines.append(f"  {_ranges(threads)} {what}\n    {ins}")
        gone = m.thread[inside & ~m.alive & (m.thread < m.geometry.threads)]
        if gone.size:
            lines.append(f"  {_ranges(gone)} have ended")
        return "\n".join(lines)


def _furthest_back(pc: np.ndarray, lanes: np.ndarray, group: int) -> np.ndarray:
    """For each group of lanes, where the last of the chosen ones stands."""
    return np.where(lanes, pc, _NOWHERE).reshape(-1, group).min(1)


def _ranges(threads: np.ndarray) -> str:
    """``256 threads (0-255)``."""
    breaks = np.nonzero(np.diff(threads) > 1)[0]
    starts = [threads[0], *threads[breaks + 1]]
    ends = [*threads[breaks], threads[-1]]
    pieces = [f"{a}" if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True)]
    words = ", ".join(pieces[:4]) + (", ..." if len(pieces) > 4 else "")
    return f"{threads.size} thread{'s' if threads.size > 1 else ''} ({words})"
