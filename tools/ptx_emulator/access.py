"""Loads and stores (PTX ISA 9.7.9: ld, st)."""

from __future__ import annotations

from functools import cache

import numpy as np

from .addressing import (
    addresses_of,
    by_space,
    load_global,
    load_shared,
    space_of,
    store_global,
    store_shared,
)
from .handlers import instruction
from .program import Address, Instruction, Operand, Register, Symbol, Vector
from .step import Step
from .values import DTYPES, UNSIGNED

_KNOWN = frozenset(
    "global shared shared::cta shared::cluster local param nc volatile weak relaxed acquire release"
    " cta gpu sys cluster ca cg cs cv lu wb wt v2 v4 v8"
    " L1::no_allocate L1::evict_last L1::evict_first L1::evict_normal L1::evict_unchanged"
    " L2::cache_hint L2::64B L2::128B L2::256B L2::evict_last L2::evict_first".split()
)


@cache
def _shape(ins: Instruction) -> tuple[int, int]:
    """(bytes of an element, elements)."""
    count = next((int(p[1:]) for p in ins.parts if p in ("v2", "v4", "v8")), 1)
    return DTYPES[ins.kind].itemsize, count


def _check(step: Step) -> None:
    strange = step.instruction.modifiers - _KNOWN - DTYPES.keys()
    if strange:
        raise step.unsupported(", ".join(f".{s}" for s in sorted(strange)))


def items_of(operand: Operand) -> tuple[Operand, ...]:
    return operand.items if isinstance(operand, Vector) else (operand,)


@instruction("ld", modifiers=None)
def load(step: Step) -> None:
    _check(step)
    ins = step.instruction
    destination, source = ins.operands[:2]
    width, count = _shape(ins)
    space = space_of(step)
    if space == "param":
        _load_parameter(step, destination, source, width, count)
        return
    addresses = addresses_of(step, source)
    bits = np.zeros((len(addresses), count), UNSIGNED[width])
    holes = np.zeros(bits.shape, np.uint8)
    for where, part in by_space(step, space, addresses):
        lanes = step.active[part]
        missing: np.ndarray | None
        if where == "global":
            bits[part], missing = load_global(step, lanes, addresses[part], width, count)
        elif where == "local":
            bits[part], missing = _local(step, lanes, addresses[part], width, count), None
        else:
            bits[part], missing = load_shared(
                step, lanes, addresses[part], width, count, cluster=where == "cluster"
            )
        if missing is not None:
            holes[part] = missing
    put_elements(step, destination, bits, holes if holes.any() else None)


def put_elements(
    step: Step, destination: Operand, bits: np.ndarray, holes: np.ndarray | None
) -> None:
    """Writes [active lanes, count] elements to a register, or to each of a vector."""
    dtype = DTYPES[step.instruction.kind]
    dtype = dtype if dtype.itemsize == bits.dtype.itemsize else bits.dtype
    for place, item in enumerate(items_of(destination)):
        value = step.machine.expand(step, bits[:, place]).view(dtype)
        missing = None if holes is None else step.machine.expand(step, holes[:, place])
        if missing is not None and not missing.any():
            missing = None
        step.write_apart(item, value, missing)


def take_elements(step: Step, source: Operand, width: int) -> tuple[np.ndarray, np.ndarray | None]:
    """The values of a register or vector: [active lanes, count]."""
    columns, missing = [], []
    for item in items_of(source):
        value, undefined = step.read_apart(item, f"b{8 * width}")
        columns.append(step.spread(value)[step.mask])
        missing.append(None if undefined is None else undefined[step.mask])
    bits = np.stack(columns, 1).view(UNSIGNED[width])
    if all(u is None for u in missing):
        return bits, None
    none = np.zeros(len(bits), np.uint8)
    return bits, np.stack([none if u is None else u for u in missing], 1)


@instruction("st", modifiers=None)
def store(step: Step) -> None:
    _check(step)
    ins = step.instruction
    target, source = ins.operands[:2]
    width, _ = _shape(ins)
    bits, holes = take_elements(step, source, width)
    addresses = addresses_of(step, target)
    for where, part in by_space(step, space_of(step), addresses):
        lanes = step.active[part]
        missing = None if holes is None else holes[part]
        if where == "global":
            store_global(step, lanes, addresses[part], bits[part], missing)
        elif where == "local":
            _local(step, lanes, addresses[part], width, bits.shape[1], bits[part])
        elif where == "param":
            raise step.unsupported("a store to a parameter")
        else:
            store_shared(
                step, lanes, addresses[part], bits[part], missing, cluster=where == "cluster"
            )


def _local(
    step: Step,
    lanes: np.ndarray,
    addresses: np.ndarray,
    width: int,
    count: int,
    bits: np.ndarray | None = None,
) -> np.ndarray:
    """Reads a thread's own memory, or writes ``bits`` to it. Never-written bytes are zeros."""
    m = step.machine
    own = (addresses & np.uint64(0xFFFFFFFF)).astype(np.int64)
    if (own % (width * count)).any() or int(own.max()) + width * count > m.local.shape[1]:
        raise step.fault("misaligned, or outside the thread's own memory", int(lanes[0]))
    index = own[:, None] + np.arange(width * count)
    if bits is not None:
        octets = np.ascontiguousarray(bits).view(np.uint8)
        m.local[lanes[:, None], index] = octets.reshape(len(lanes), -1)
        return bits
    return np.ascontiguousarray(m.local[lanes[:, None], index]).view(UNSIGNED[width])


def _load_parameter(
    step: Step, destination: Operand, source: Operand, width: int, count: int
) -> None:
    assert isinstance(source, Address)
    m = step.machine
    if isinstance(source.base, Symbol):
        name, offset = source.base.name, np.full(len(step.active), source.offset)
    else:
        assert isinstance(source.base, Register)
        address = addresses_of(step, source).astype(np.int64)
        name, offset = m.parameter_at(int(address[0]) >> 16), address & 0xFFFF
    data = m.parameters[name]
    size = width * count
    if (offset % size).any() or int(offset.max()) + size > data.size:
        raise step.fault(f"misaligned, or outside the parameter {name}")
    bits = data.view(UNSIGNED[width])[(offset // width)[:, None] + np.arange(count)]
    put_elements(step, destination, bits, None)
