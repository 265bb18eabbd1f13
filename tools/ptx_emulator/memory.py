"""Global memory: named buffers, far apart, aligned as promised and no better.

Addresses are invented, not the host's. So a stray access can never hit another buffer, a fault
names the buffer that the access left, and only the last row of a tensor of many gigabytes need
exist (``before``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .values import UNSIGNED, Undefined

_SLOT = 1 << 40
"""Each buffer has an address range of this size to itself."""
WIDEST_ACCESS = 32


@dataclass(eq=False)
class Buffer:
    """A piece of global memory."""

    name: str
    pointer: int
    """What a kernel is passed: the address of the tensor's first element."""
    address: int
    """Of the first byte that exists; the pointer, except with ``before``."""
    size: int
    front: int
    """Bytes of ``content`` before the first, so that addresses and offsets are aligned alike."""
    content: np.ndarray
    """uint8, of a length that can be viewed as wider types."""
    undefined: np.ndarray | None
    read_only: bool
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def array(self) -> np.ndarray:
        """What the buffer holds now, in the shape it was placed with; not a copy."""
        inside = self.content[self.front : self.front + self.size]
        return inside.view(self.dtype).reshape(self.shape)

    @property
    def never_written(self) -> np.ndarray:
        """The elements that hold nothing."""
        if self.undefined is None:
            return np.zeros(self.shape, bool)
        inside = self.undefined[self.front : self.front + self.size]
        octets = inside.reshape(*self.shape, self.dtype.itemsize)
        return np.asarray(octets.any(-1))


@dataclass(frozen=True)
class Piece:
    """The lanes of one access that fall into one buffer."""

    buffer: Buffer
    lanes: np.ndarray | slice
    """Which of the accessing lanes."""
    offsets: np.ndarray
    """Bytes from the start of ``content``."""


class OutsideEveryBuffer(Exception):
    """An access missed. ``lane`` is the first of the accessing lanes that did."""

    def __init__(self, words: str, lane: int) -> None:
        super().__init__(words)
        self.words = words
        self.lane = lane


class GlobalMemory:
    def __init__(self) -> None:
        self.buffers: list[Buffer] = []

    def place(
        self,
        name: str,
        array: np.ndarray,
        *,
        alignment: int = 16,
        before: int = 0,
        defined: np.ndarray | None = None,
        read_only: bool = False,
    ) -> Buffer:
        """A buffer that holds a copy of ``array``.

        Args:
            name: for messages and counts.
            array: any numpy array.
            alignment: the address is a multiple of this and of no higher power of two.
            before: bytes of the tensor before the array's first that do not exist.
            defined: which elements hold something (False: padding, results to be written); all.
            read_only: a store to it is a fault.
        """
        pointer = (len(self.buffers) + 1) * _SLOT + alignment
        front = (pointer + before) % WIDEST_ACCESS
        end = front + array.nbytes
        content = np.zeros(-(-end // WIDEST_ACCESS) * WIDEST_ACCESS, np.uint8)
        content[front:end] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        undefined = None
        if defined is not None and not defined.all():
            undefined = np.zeros(content.size, np.uint8)
            holes = np.repeat(~np.broadcast_to(defined, array.shape).reshape(-1), array.itemsize)
            undefined[front:end][holes] = Undefined.GLOBAL
        buffer = Buffer(
            name=name,
            pointer=pointer,
            address=pointer + before,
            size=array.nbytes,
            front=front,
            content=content,
            undefined=undefined,
            read_only=read_only,
            shape=array.shape,
            dtype=array.dtype,
        )
        self.buffers.append(buffer)
        return buffer

    def fill(self, start: int, value: int, size: int) -> None:
        """What ``cudaMemset`` does."""
        if size == 0:
            return
        for piece in self.find(np.array([start], np.uint64), size):
            inside = slice(int(piece.offsets[0]), int(piece.offsets[0]) + size)
            piece.buffer.content[inside] = value
            if piece.buffer.undefined is not None:
                piece.buffer.undefined[inside] = 0

    def find(self, addresses: np.ndarray, size: int) -> Iterator[Piece]:
        """Splits an access of ``size`` bytes a lane by buffer."""
        slots = addresses // np.uint64(_SLOT)
        low, high = int(slots.min()), int(slots.max())
        for slot in [low] if low == high else np.unique(slots).tolist():
            lanes = slice(None) if low == high else np.nonzero(slots == slot)[0]
            there = addresses[lanes]
            buffer = self.buffers[slot - 1] if 0 < slot <= len(self.buffers) else None
            # Unsigned: an address below the buffer becomes a huge offset.
            start = np.uint64(buffer.address if buffer else 0)
            limit = buffer.size - size if buffer else -1
            offsets = there - start
            if limit < 0 or int(offsets.max()) > limit:
                wrong = int(np.argmax(offsets > limit)) if limit >= 0 else 0
                words = self._miss(int(there[wrong]), size)
                first = wrong if isinstance(lanes, slice) else int(lanes[wrong])
                raise OutsideEveryBuffer(words, first)
            assert buffer is not None
            yield Piece(buffer, lanes, offsets.astype(np.int64) + buffer.front)

    def _miss(self, address: int, size: int) -> str:
        """Where an access went, as seen from the nearest buffer."""
        slot = address // _SLOT
        if not 0 < slot <= len(self.buffers):
            return f"address {address:#x} is not near any buffer"
        buffer = self.buffers[slot - 1]
        offset = address - buffer.address
        if offset < 0:
            return f"{-offset} bytes before `{buffer.name}`"
        past = offset + size - buffer.size
        return f"{past} bytes past the end of `{buffer.name}` ({buffer.size} bytes)"


def gather(
    content: np.ndarray, undefined: np.ndarray | None, offsets: np.ndarray, width: int, count: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Reads ``count`` elements of ``width`` bytes at aligned offsets: [lanes, count]."""
    index = offsets // width
    if count > 1:
        index = index[:, None] + np.arange(count)
    bits = content.view(UNSIGNED[width])[index].reshape(len(offsets), count)
    if undefined is None:
        return bits, None
    holes = undefined.view(UNSIGNED[width])[index].reshape(len(offsets), count)
    if not holes.any():
        return bits, None
    return bits, np.ascontiguousarray(holes)[..., None].view(np.uint8).max(-1)


def scatter(
    content: np.ndarray,
    undefined: np.ndarray | None,
    offsets: np.ndarray,
    bits: np.ndarray,
    holes: np.ndarray | None,
) -> None:
    """Writes [lanes, count] elements; where lanes share a place, the last one wins."""
    width = bits.dtype.itemsize
    index = (offsets // width)[:, None] + np.arange(bits.shape[1])
    content.view(UNSIGNED[width])[index] = bits
    if undefined is None:
        return
    spread = 0 if holes is None else np.repeat(holes[..., None], width, -1).reshape(*bits.shape, -1)
    undefined.reshape(-1, width)[index] = spread


def count_sectors(addresses: np.ndarray, warps: np.ndarray, sector: int) -> int:
    """Distinct sectors touched by each warp, summed."""
    keys = (warps.astype(np.int64) << 42) + (addresses // np.uint64(sector)).astype(np.int64)
    steps = np.diff(keys)
    if (steps < 0).any():
        steps = np.diff(np.sort(keys))
    return int(np.count_nonzero(steps)) + 1
