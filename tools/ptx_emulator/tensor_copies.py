"""Bulk and tensor copies between global and shared memory (PTX ISA 9.7.9: cp.async.bulk).

A tensor map is 128 opaque bytes. Here it is a record beside memory, keyed by the address at which
the program builds it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np

from .addressing import addresses_of, global_pieces, require_writable
from .handlers import instruction
from .memory import GlobalMemory, OutsideEveryBuffer
from .program import Address, Immediate, Operand
from .shared import CLUSTER_SHIFT
from .step import Step
from .values import Undefined

_ELEMENT_BYTES = {0: 1, 1: 2, 2: 4, 3: 4, 4: 8, 5: 8, 6: 2, 7: 4, 8: 4, 9: 8, 10: 2}
"""By the number of the element type in ``tensormap.replace``; 6 is f16, 7 is f32, 10 is bf16."""
_SWIZZLE_BITS = {0: 0, 1: 1, 2: 3, 3: 7}

TensorMap = dict[tuple[str, int], int]


@dataclass
class TensorMaps:
    shared: dict[tuple[int, int], TensorMap] = field(default_factory=dict)
    """By block and address."""
    in_global: dict[int, TensorMap] = field(default_factory=dict)


@instruction("tensormap", modifiers=None)
def tensor_map(step: Step) -> None:
    if step.instruction.parts[1] == "replace":
        _replace(step)
    elif step.instruction.parts[1] == "cp_fenceproxy":
        _publish(step)
    else:
        raise step.unsupported()


def _replace(step: Step) -> None:
    """Sets one field, of one dimension where an ordinal is given."""
    m = step.machine
    address, *ordinal, value = step.instruction.operands
    name = step.instruction.parts[3]
    if not step.instruction.modifiers & {"shared", "shared::cta"}:
        raise step.unsupported("a tensor map outside shared memory")
    number = int(ordinal[0].text, 0) if ordinal and isinstance(ordinal[0], Immediate) else 0
    values = step.spread(step.read(value, step.instruction.kind))
    step.require_defined("a field of a tensor map")
    for lane, place in zip(step.active.tolist(), addresses_of(step, address).tolist(), strict=True):
        table = m.tensor_maps.shared.setdefault((int(m.block_of[lane]), place), {})
        table[name, number] = int(values[lane])


def _publish(step: Step) -> None:
    m = step.machine
    target, source, _ = step.instruction.operands
    pairs = zip(
        addresses_of(step, target).tolist(), addresses_of(step, source).tolist(), strict=True
    )
    for lane, (there, here) in zip(step.active.tolist(), pairs, strict=True):
        found = m.tensor_maps.shared.get((int(m.block_of[lane]), here))
        if found is not None:
            m.tensor_maps.in_global[there] = dict(found)


def bulk_copy(step: Step) -> None:
    """All of ``cp.async.bulk``. One thread issues it for many bytes."""
    modifiers = step.instruction.modifiers
    if modifiers & {"commit_group", "wait_group"}:
        return  # copies to global memory have happened
    if "multicast::cluster" in modifiers or "im2col" in modifiers or "reduce" in modifiers:
        raise step.unsupported("this bulk copy")
    to_shared = step.instruction.parts.index("global") > 2
    for lane in step.active.tolist():
        one = Step(
            step.machine,
            instruction=step.instruction,
            number=step.number,
            arrived=step.arrived,
            mask=_only(step, lane),
            full=step.machine.lanes == 1,
        )
        if "tensor" in modifiers:
            _copy_box(one, lane, to_shared=to_shared)
        else:
            _copy_bytes(one, lane, to_shared=to_shared)


def _only(step: Step, lane: int) -> np.ndarray:
    mask = np.zeros(step.mask.shape, bool)
    mask[lane] = True
    return mask


def _copy_bytes(step: Step, lane: int, *, to_shared: bool) -> None:
    target, source, size, *rest = step.instruction.operands
    count = step.uniform(size, "u32")
    there, here = (int(addresses_of(step, operand)[0]) for operand in (target, source))
    if there % 16 or here % 16 or count % 16:
        raise step.fault("a bulk copy not aligned to 16 bytes", lane)
    inner, outer = (there, here) if to_shared else (here, there)
    flat = _shared_bytes(step, lane, np.array([inner]), count)[0] + np.arange(count)
    places = np.uint64(outer) + np.arange(count, dtype=np.uint64)
    everything = np.ones(count, bool)
    if to_shared:
        _to_shared(step, lane, places, everything, flat, rest[0])
    else:
        _to_global(step, lane, places, everything, flat)


def _copy_box(step: Step, lane: int, *, to_shared: bool) -> None:
    m = step.machine
    first, second, *rest = step.instruction.operands
    described, plain = (second, first) if to_shared else (first, second)
    assert isinstance(described, Address)
    table = m.tensor_maps.in_global.get(int(addresses_of(step, described)[0]))
    if table is None:
        raise step.fault("a tensor copy through a map that was not published", lane)
    rank = int(re.fullmatch(r"(\d)d", step.instruction.parts[4]).group(1))  # type: ignore[union-attr]
    corner = [step.uniform(c, "s32") for c in described.coordinates]
    item = _ELEMENT_BYTES[table["elemtype", 0]]
    box = [table["box_dim", d] for d in range(rank)]
    steps = [item, *(table["global_stride", d] for d in range(rank - 1))]
    if table["global_address", 0] % 16 or any(s % 16 for s in steps[1:]):
        raise step.fault("a tensor map whose address or stride is not a multiple of 16", lane)
    number = np.arange(int(np.prod(box)))
    inside = np.ones(number.size, bool)
    address = np.full(number.size, table["global_address", 0], np.int64)
    rest_of = number
    for dimension in range(rank):
        place = corner[dimension] + rest_of % box[dimension]
        rest_of = rest_of // box[dimension]
        inside &= (place >= 0) & (place < table["global_dim", dimension])
        address = address + place * steps[dimension]
    octet = np.arange(item)
    places = (address[:, None] + octet).astype(np.uint64).reshape(-1)
    base = int(addresses_of(step, plain)[0])
    inner = base + number * item
    inner = inner ^ (inner >> 7 & _SWIZZLE_BITS[table["swizzle_mode", 0]]) << 4
    flat = (_shared_bytes(step, lane, inner, item)[:, None] + octet).reshape(-1)
    if to_shared:
        _to_shared(step, lane, places, np.repeat(inside, item), flat, rest[0])
    else:
        _to_global(step, lane, places, np.repeat(inside, item), flat)


def _shared_bytes(step: Step, lane: int, addresses: np.ndarray, size: int) -> np.ndarray:
    m = step.machine
    own = addresses & ((1 << CLUSTER_SHIFT) - 1)
    if (addresses >> CLUSTER_SHIFT).any():
        raise step.unsupported("a bulk copy to another block's shared memory")
    if own.min() < m.shared.start or own.max() + size > m.shared.end:
        raise step.fault("a bulk copy outside shared memory", lane)
    return m.shared.flat(m.block_of[lane], own)


def _bytes_at(step: Step, lane: int, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The bytes at some global addresses, and what is undefined about them."""
    content, holes = np.zeros(places.size, np.uint8), np.zeros(places.size, np.uint8)
    memory: GlobalMemory = step.machine.memory
    try:
        pieces = list(memory.find(places, 1))
    except OutsideEveryBuffer as miss:
        raise step.fault(f"a bulk copy, {miss.words}", lane) from None
    for piece in pieces:
        content[piece.lanes] = piece.buffer.content[piece.offsets]
        if piece.buffer.undefined is not None:
            holes[piece.lanes] = piece.buffer.undefined[piece.offsets]
        name, count = piece.buffer.name, len(piece.offsets)
        step.machine.counts.loaded_bytes[name] += count
        step.machine.counts.load_sectors[name] += len(
            np.unique(places[piece.lanes] // np.uint64(32))
        )
    return content, holes


def _to_shared(
    step: Step,
    lane: int,
    places: np.ndarray,
    inside: np.ndarray,
    flat: np.ndarray,
    barrier: Operand,
) -> None:
    """Bytes outside the tensor become zeros; the barrier counts them too."""
    m = step.machine
    content, holes = np.zeros(flat.size, np.uint8), np.zeros(flat.size, np.uint8)
    if inside.any():
        content[inside], holes[inside] = _bytes_at(step, lane, places[inside])
    mbarrier = int(_shared_bytes(step, lane, addresses_of(step, barrier).astype(np.int64), 8)[0])
    who = np.full(flat.size, lane)
    if m.races:
        m.races.write(step, who, flat, 1, None)

    def land() -> None:
        m.shared.store(flat, content[:, None], holes[:, None])

    if m.conditions.late_copies:
        m.shared.poison(flat, 1, Undefined.IN_FLIGHT)
    m.mbarriers.start_copy(step, lane, mbarrier, flat.size, land)


def _to_global(
    step: Step, lane: int, places: np.ndarray, inside: np.ndarray, flat: np.ndarray
) -> None:
    m = step.machine
    bits, holes = m.shared.load(flat, 1, 1)
    if holes is not None and holes[inside].any():
        raise step.fault("a bulk copy of shared memory that holds nothing", lane)
    who = np.full(int(inside.sum()), lane)
    for piece in global_pieces(step, who, places[inside], 1, "bulk copy"):
        require_writable(step, piece.buffer, lane)
        piece.buffer.content[piece.offsets] = bits[inside, 0][piece.lanes]
        if piece.buffer.undefined is not None:
            piece.buffer.undefined[piece.offsets] = 0
        m.counts.stored_bytes[piece.buffer.name] += len(piece.offsets)
        sectors = np.unique(places[inside][piece.lanes] // np.uint64(32))
        m.counts.store_sectors[piece.buffer.name] += len(sectors)
