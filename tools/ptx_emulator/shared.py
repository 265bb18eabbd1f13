"""Shared memory of the blocks in flight: bounds, undefined bytes, bank conflicts."""

import numpy as np

from .memory import gather, scatter
from .values import Undefined

CLUSTER_SHIFT = 24
"""An address in the cluster's window is ``(rank + 1) << 24 | address in that block``; below that it
is one of the block itself (PTX ISA, shared::cta lies within shared::cluster)."""


class SharedMemory:
    def __init__(self, blocks: int, start: int, end: int) -> None:
        self.start, self.end = start, end
        self.pitch = -(-end // 32) * 32
        # Every bit set: NaN in each float type, should a flag of an undefined value ever get lost.
        self.content = np.full(blocks * self.pitch, 0xFF, np.uint8)
        self.undefined = np.full(blocks * self.pitch, Undefined.SHARED, np.uint8)

    def flat(self, blocks: np.ndarray, addresses: np.ndarray) -> np.ndarray:
        return blocks * self.pitch + addresses

    def load(
        self, flat: np.ndarray, width: int, count: int
    ) -> tuple[np.ndarray, np.ndarray | None]:
        return gather(self.content, self.undefined, flat, width, count)

    def store(self, flat: np.ndarray, bits: np.ndarray, holes: np.ndarray | None) -> None:
        scatter(self.content, self.undefined, flat, bits, holes)

    def in_flight(self, flat: np.ndarray, size: int) -> np.ndarray:
        """Which accesses of ``size`` bytes hit the target of a copy that may still arrive."""
        why = self.undefined[flat[:, None] + np.arange(size)]
        return np.asarray((why == Undefined.IN_FLIGHT).any(1))

    def poison(self, flat: np.ndarray, size: int, why: Undefined) -> None:
        """Makes ``size`` bytes at each offset undefined."""
        index = flat[:, None] + np.arange(size)
        self.content[index] = 0xFF
        self.undefined[index] = why


def wavefronts(addresses: np.ndarray, warps: np.ndarray, lanes: np.ndarray, size: int) -> tuple:
    """(passes needed, passes without conflicts) of an access of ``size`` bytes a lane.

    A pass serves one word from each of the 32 banks, to any number of lanes. Accesses of 8 and 16
    bytes are served half and quarter warp by half and quarter warp.
    """
    parts = max(1, size // 4)
    group = warps.astype(np.int64) * parts + lanes // (32 // parts)
    words = addresses // 4
    if parts > 1:
        # The words after the first lie in the banks beside it, in every lane alike.
        words = words // parts * parts
    bank = words % 32
    order = np.lexsort((words, bank, group))
    group, bank, words = group[order], bank[order], words[order]
    new = np.ones(len(order), bool)
    new[1:] = (np.diff(group) != 0) | (np.diff(bank) != 0) | (np.diff(words) != 0)
    places, distinct = np.unique((group * 32 + bank)[new], return_counts=True)
    owners = places // 32
    starts = np.concatenate(([0], np.nonzero(np.diff(owners))[0] + 1))
    return int(np.maximum.reduceat(distinct, starts).sum()), len(starts)
