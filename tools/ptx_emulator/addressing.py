"""From an address operand to checked, counted accesses (PTX ISA 6.4, 9.7.9)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .counts import SECTOR
from .memory import Buffer, OutsideEveryBuffer, Piece, count_sectors, gather, scatter
from .moves import LOCAL_WINDOW, SHARED_WINDOW
from .program import Address, Operand
from .shared import CLUSTER_SHIFT, wavefronts
from .step import Step
from .values import reason

_SPACES = {
    "global": "global",
    "shared": "shared",
    "shared::cta": "shared",
    "shared::cluster": "cluster",
    "local": "local",
    "param": "param",
}


def space_of(step: Step) -> str:
    """The state space that an opcode names; ``generic`` if none."""
    found = [_SPACES[part] for part in step.instruction.parts if part in _SPACES]
    return found[0] if found else "generic"


def addresses_of(step: Step, operand: Operand) -> np.ndarray:
    """uint64 address of each active lane. Shared addresses may stand in registers of 64 bits."""
    assert isinstance(operand, Address)
    undefined, step.undefined = step.undefined, None
    base = step.read(operand.base, "u64")
    step.require_defined("an address")
    step.undefined = undefined
    return step.spread(base + np.uint64(operand.offset & 0xFFFFFFFFFFFFFFFF))[step.mask]


def by_space(step: Step, space: str, addresses: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Splits generic addresses by window: (space, which of the active lanes)."""
    everything = np.arange(len(addresses))
    if space != "generic":
        yield space, everything
        return
    windows = addresses >> np.uint64(56)
    for window in np.unique(windows).tolist():
        # The window of shared memory is that of the cluster, the own block's first.
        name = {0: "global", SHARED_WINDOW >> 56: "cluster", LOCAL_WINDOW >> 56: "local"}.get(
            window
        )
        if name is None:
            lane = int(step.active[int(np.argmax(windows == window))])
            raise step.fault(f"a generic address in no space: window {window:#x}", lane)
        yield name, everything[windows == window]


def shared_places(
    step: Step, lanes: np.ndarray, addresses: np.ndarray, size: int, *, cluster: bool = False
) -> np.ndarray:
    """Where accesses of ``size`` bytes lie in the array of shared memory.

    Args:
        step: for messages.
        lanes: the accessing lanes.
        addresses: of each of them.
        size: aligned to itself.
        cluster: addresses are of the cluster's window.
    """
    m = step.machine
    own = (addresses & np.uint64(0xFFFFFFFF)).astype(np.int64)
    blocks = m.block_of[lanes]
    if cluster:
        rank = (own >> CLUSTER_SHIFT) - 1
        first = blocks // m.geometry.cluster_blocks * m.geometry.cluster_blocks
        blocks = np.where(rank < 0, blocks, first + rank)
        own = own & ((1 << CLUSTER_SHIFT) - 1)
        gone = ~m.alive.reshape(m.blocks, -1).any(1)[blocks]
        if gone.any():
            lane = int(lanes[int(np.argmax(gone))])
            raise step.fault("shared memory of a block of the cluster that has ended", lane)
    if (own % size).any():
        wrong = int((own % size).argmax())
        raise step.fault(
            f"misaligned: {size} bytes of shared memory at {own[wrong]:#x}", int(lanes[wrong])
        )
    outside = (own < m.shared.start) | (own + size > m.shared.end)
    if outside.any():
        wrong = int(np.argmax(outside))
        raise step.fault(
            f"{size} bytes at {own[wrong]:#x} are outside shared memory, "
            f"{m.shared.start:#x} to {m.shared.end:#x}",
            int(lanes[wrong]),
        )
    return m.shared.flat(blocks, own)


def count_wavefronts(step: Step, lanes: np.ndarray, places: np.ndarray, size: int) -> None:
    m = step.machine
    needed, ideal = wavefronts(places, m.warp_of[lanes], lanes % 32, size)
    m.counts.shared_wavefronts += needed
    m.counts.shared_wavefronts_ideal += ideal


def load_shared(
    step: Step, lanes: np.ndarray, addresses: np.ndarray, width: int, count: int, *, cluster: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    """Reads [lanes, count] elements of ``width`` bytes."""
    m = step.machine
    places = shared_places(step, lanes, addresses, width * count, cluster=cluster)
    count_wavefronts(step, lanes, places, width * count)
    if m.races:
        m.races.read(step, lanes, places, width * count)
    return m.shared.load(places, width, count)


def store_shared(
    step: Step,
    lanes: np.ndarray,
    addresses: np.ndarray,
    bits: np.ndarray,
    holes: np.ndarray | None,
    *,
    cluster: bool,
) -> None:
    m = step.machine
    size = bits.dtype.itemsize * bits.shape[1]
    places = shared_places(step, lanes, addresses, size, cluster=cluster)
    count_wavefronts(step, lanes, places, size)
    require_landed(step, lanes, places, size)
    if m.races:
        m.races.write(step, lanes, places, size, bits)
    m.shared.store(places, bits, holes)


def require_landed(step: Step, lanes: np.ndarray, places: np.ndarray, size: int) -> None:
    """A store must not hit bytes that an asynchronous copy may still overwrite."""
    early = step.machine.shared.in_flight(places, size)
    if early.any():
        raise step.fault(
            "a store to shared memory that an asynchronous copy, not waited for, may still write",
            int(lanes[int(np.argmax(early))]),
        )


def global_pieces(
    step: Step, lanes: np.ndarray, addresses: np.ndarray, size: int, what: str
) -> Iterator[Piece]:
    """Checks accesses to global memory; ``size`` bytes, at most 32, are aligned to themselves."""
    misaligned = addresses % np.uint64(size) != 0
    if misaligned.any():
        wrong = int(np.argmax(misaligned))
        found = _words(step, int(addresses[wrong]))
        raise step.fault(f"misaligned: {what} of {size} bytes at {found}", int(lanes[wrong]))
    try:
        yield from step.machine.memory.find(addresses, size)
    except OutsideEveryBuffer as miss:
        raise step.fault(f"{what} of {size} bytes, {miss.words}", int(lanes[miss.lane])) from None


def _words(step: Step, address: int) -> str:
    for buffer in step.machine.memory.buffers:
        if 0 <= address - buffer.address < buffer.size:
            return f"byte {address - buffer.pointer} of `{buffer.name}`"
    return f"{address:#x}"


def load_global(
    step: Step, lanes: np.ndarray, addresses: np.ndarray, width: int, count: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Reads [lanes, count] elements of ``width`` bytes."""
    m = step.machine
    size = width * count
    bits = np.zeros((len(lanes), count), f"u{width}")
    holes: np.ndarray | None = None
    for piece in global_pieces(step, lanes, addresses, size, "load"):
        name, part = piece.buffer.name, lanes[piece.lanes]
        m.counts.loaded_bytes[name] += len(part) * size
        warps = m.warp_of[part]
        m.counts.load_sectors[name] += count_sectors(addresses[piece.lanes], warps, SECTOR)
        if m.global_races:
            m.global_races.read(step, part, piece.buffer, piece.offsets, size)
        content, undefined = piece.buffer.content, piece.buffer.undefined
        found, missing = gather(content, undefined, piece.offsets, width, count)
        bits[piece.lanes] = found
        if missing is not None:
            holes = np.zeros(bits.shape, np.uint8) if holes is None else holes
            holes[piece.lanes] = missing
    return bits, holes


def store_global(
    step: Step, lanes: np.ndarray, addresses: np.ndarray, bits: np.ndarray, holes: np.ndarray | None
) -> None:
    """Writes [lanes, count] elements; an undefined value must not leave the block."""
    m = step.machine
    if holes is not None and holes.any():
        wrong = int(np.argmax(holes.any(1)))
        why = reason(int(holes[wrong].max()))
        raise step.fault(f"the value stored to global memory comes from {why}", int(lanes[wrong]))
    size = bits.dtype.itemsize * bits.shape[1]
    for piece in global_pieces(step, lanes, addresses, size, "store"):
        part = lanes[piece.lanes]
        require_writable(step, piece.buffer, int(part[0]))
        name = piece.buffer.name
        m.counts.stored_bytes[name] += len(part) * size
        warps = m.warp_of[part]
        m.counts.store_sectors[name] += count_sectors(addresses[piece.lanes], warps, SECTOR)
        if m.global_races:
            m.global_races.write(step, part, piece.buffer, piece.offsets, size, bits[piece.lanes])
        content, undefined = piece.buffer.content, piece.buffer.undefined
        scatter(content, undefined, piece.offsets, bits[piece.lanes], None)


def require_writable(step: Step, buffer: Buffer, lane: int) -> None:
    if buffer.read_only:
        raise step.fault(f"a store to `{buffer.name}`, which is read-only", lane)
