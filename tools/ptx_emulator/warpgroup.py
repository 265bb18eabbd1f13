"""Asynchronous products of a warpgroup, ``wgmma`` (PTX ISA 9.7.15)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .access import items_of
from .formats import halves
from .handlers import instruction
from .matrix import a_matrix, multiplicands, multiply, read_fragment
from .program import Immediate, Operand, Register, Vector
from .step import Step
from .values import ACCUMULATING

if TYPE_CHECKING:
    from .machine import Machine

_GROUP = 128
_SWIZZLE_BYTES = {0: 16, 1: 128, 2: 64, 3: 32}
_SWIZZLE_BITS = {0: 0, 1: 7, 2: 3, 3: 1}


@dataclass
class _Shape:
    """What an mma_async multiplies, from its opcode and immediates."""

    n: int
    k: int
    kind: str
    transposed: tuple[bool, bool]


def _shape(step: Step) -> _Shape:
    """Operands: d, a, b, scale-d, imm-scale-a, imm-scale-b, then for halves imm-trans-a (if a is in
    shared memory) and imm-trans-b."""
    ins = step.instruction
    match = re.search(r"\.m64n(\d+)k(\d+)\.", ins.opcode)
    kind = ins.kind
    known = match and (kind, match.group(2)) in {("bf16", "16"), ("f16", "16"), ("tf32", "8")}
    if not known or ins.parts[-3:] != ("f32", kind, kind):
        raise step.unsupported("this warpgroup product")
    assert match is not None
    _, a, _, _, *signs = ins.operands
    numbers = [int(s.text) for s in signs if isinstance(s, Immediate)]
    if numbers[:2] not in ([], [1, 1]):
        raise step.unsupported("a negated operand")
    turns = [bool(n) for n in numbers[2:]] or [False]
    transposed = (False, turns[0]) if isinstance(a, Vector) else (turns[0], turns[-1])
    return _Shape(int(match.group(1)), int(match.group(2)), kind, transposed)


@dataclass
class _Product:
    """One instruction in flight. It takes descriptors and the predicate when it is issued; it
    reads only the matrices later."""

    step: Step
    shape: _Shape
    groups: np.ndarray
    """Which warpgroups execute it."""
    commit_group: np.ndarray
    """The number of the wgmma group of each lane."""
    waiting: np.ndarray
    """Lanes that have not waited for the result."""
    keep: np.ndarray
    """For each warpgroup, whether D is added to."""
    descriptors: tuple[np.ndarray | None, np.ndarray]
    """Of A and B in shared memory; A may be in registers."""
    clocks: np.ndarray | None
    """The clocks of each warp at the issue: it may read from then on."""
    done: bool = False


class WarpgroupProducts:
    """Products in the order of issue. Until it is waited for, a product's accumulators hold
    nothing: they are flagged from issue to wait. With late copies it reads its operands only at the
    wait, so that an operand overwritten in the meantime shows."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._pending: list[_Product] = []
        self._committed = np.zeros(machine.lanes, np.int32)

    def start(self, step: Step) -> None:
        _, a, b, scale_d, *_ = step.instruction.operands
        groups = np.nonzero(step.mask.reshape(-1, _GROUP).all(1))[0]
        product = _Product(
            step,
            _shape(step),
            groups,
            self._committed.copy(),
            step.mask.copy(),
            step.spread(step.read(scale_d, "pred")).reshape(-1, _GROUP)[groups, 0],
            (
                None if isinstance(a, Vector) else _descriptor(step, a, groups),
                _descriptor(step, b, groups),
            ),
            None if self._machine.clocks is None else self._machine.clocks.of_warp.copy(),
        )
        step.require_defined("a matrix descriptor or the scale of D")
        if not self._machine.conditions.late_copies:
            _compute(product)
        for item in _accumulators(step):
            self._flag(item.name, step.mask, True)
        self._pending.append(product)

    def commit(self, mask: np.ndarray) -> None:
        self._committed[mask] += 1

    def wait(self, mask: np.ndarray, but: int) -> None:
        """Completes all but the ``but`` latest groups of these lanes."""
        for product in self._pending:
            over = mask & product.waiting & (product.commit_group < self._committed - but)
            if not over.any():
                continue
            if not product.done:
                _compute(product)
            product.waiting &= ~over
        kept = [p for p in self._pending if p.waiting.any()]
        for product in self._pending:
            for item in _accumulators(product.step):
                self._flag(item.name, mask, False)
        # A later product may already write the registers of an earlier one that is complete.
        for product in kept:
            for item in _accumulators(product.step):
                self._flag(item.name, product.waiting, True)
        self._pending = kept

    def _flag(self, name: str, mask: np.ndarray, flagged: bool) -> None:
        registers = self._machine.registers
        bits, undefined = registers.read(name)
        registers.bits.setdefault(name, bits.copy())
        after = np.zeros(len(mask), np.uint8) if undefined is None else undefined.copy()
        after[mask] = after[mask] | ACCUMULATING if flagged else after[mask] & ~ACCUMULATING
        registers.undefined[name] = after if after.any() else None


@instruction("wgmma", modifiers=None)
def wgmma(step: Step) -> None:
    ins = step.instruction
    name = ins.parts[1]
    products = step.machine.products
    if name == "mma_async":
        products.start(step)
    elif name == "commit_group":
        products.commit(step.mask)
    elif name == "wait_group":
        products.wait(step.mask, step.uniform(ins.operands[0], "u32"))
    elif name != "fence":
        raise step.unsupported()


def _accumulators(step: Step) -> list[Register]:
    return [item for item in items_of(step.instruction.operands[0]) if isinstance(item, Register)]


def _descriptor(step: Step, operand: Operand, groups: np.ndarray) -> np.ndarray:
    words = step.spread(step.read(operand, "u64")).reshape(-1, _GROUP)[groups]
    if (words != words[:, :1]).any():
        raise step.fault("threads of a warpgroup disagree on a matrix descriptor")
    return words[:, 0].astype(np.int64)


def _compute(product: _Product) -> None:
    """D = A B + (D or 0), read and written now."""
    product.done = True
    step, shape, groups = product.step, product.shape, product.groups
    a = step.instruction.operands[1]
    step.undefined = None
    missing: list[np.ndarray] = []
    of_a, of_b = product.descriptors
    if of_a is None:
        assert isinstance(a, Vector)
        pieces = read_fragment(step, a.items, shape.kind)
        left = a_matrix(pieces).reshape(-1, 64, shape.k)[groups]
    else:
        left = _operand(product, of_a, 64, shape.transposed[0], missing)
    right = _operand(product, of_b, shape.n, shape.transposed[1], missing)
    total = multiply(left, right.swapaxes(1, 2)).reshape(len(groups), 4, 2, 8, -1, 4, 2)
    if step.undefined is not None:
        missing.append(step.undefined.reshape(-1, _GROUP).max(1)[groups])
    spoiled = np.zeros((len(step.mask) // _GROUP, _GROUP), np.uint8)
    for holes in missing:  # an undefined element spoils rows or columns; here the whole tile
        spoiled[groups] = np.maximum(spoiled[groups], holes[:, None])
    kept = np.zeros(spoiled.shape, bool)
    kept[groups] = product.keep[:, None]
    for place, item in enumerate(_accumulators(step)):
        column, half, odd = place // 4, place // 2 % 2, place % 2
        value = np.zeros(spoiled.shape)
        value[groups] = total[:, :, half, :, column, :, odd].reshape(len(groups), _GROUP)
        before, undefined = step.read_apart(item, "f32")
        value = value.reshape(-1) + np.where(kept.reshape(-1), before, np.float32(0))
        holes = spoiled.reshape(-1)
        if undefined is not None:
            # An earlier product may still write it: products run in order, so it is not undefined.
            old = np.where(kept.reshape(-1), undefined & ~ACCUMULATING, 0)
            holes = np.maximum(holes, old) | (undefined & ACCUMULATING)
        step.write_apart(item, value.astype(np.float32), holes if holes.any() else None)
    step.machine.counts.mma_flops += len(groups) * 2 * 64 * shape.n * shape.k


def _operand(
    product: _Product,
    descriptor: np.ndarray,
    rows: int,
    transposed: bool,
    missing: list[np.ndarray],
) -> np.ndarray:
    """A [rows, k] operand of each group from shared memory, through its descriptor (9.7.15.5)."""
    step, shape, groups = product.step, product.shape, product.groups
    m = step.machine
    start, leading, stride = (
        ((descriptor >> shift & 0x3FFF) << 4)[:, None, None] for shift in (0, 16, 32)
    )
    if (descriptor >> 49 & 7).any():
        raise step.unsupported("a matrix descriptor with a base offset")
    swizzle = int(descriptor[0] >> 62 & 3)
    if (descriptor >> 62 & 3 != swizzle).any():
        raise step.unsupported("different swizzles in one instruction")
    size = 4 if shape.kind == "tf32" else 2
    row, column = np.arange(rows)[:, None], np.arange(shape.k)[None, :]
    width = _SWIZZLE_BYTES[swizzle]
    if transposed:
        # Rows contiguous: atoms of `width` bytes of rows times 8 columns. Without a swizzle the two
        # distances change places.
        across = width // size
        by_row, by_column = (leading, stride) if swizzle else (stride, leading)
        offset = row % across * size + column % 8 * width
        offset = offset + row // across * by_row + column // 8 * by_column
    else:
        # Columns contiguous: atoms of 8 rows of `width` bytes. Without a swizzle the columns
        # beyond 16 bytes are in the next atom; with one they are within the width.
        offset = row % 8 * width + column * size % 16 + row // 8 * stride
        next_atom = column * size // 16
        offset = offset + next_atom * (16 if swizzle else leading)
    address = start + offset
    address = address ^ (address >> 7 & _SWIZZLE_BITS[swizzle]) << 4
    outside = (address < m.shared.start) | (address + size > m.shared.end)
    if outside.any():
        raise step.fault("a matrix descriptor leads outside shared memory", int(step.active[0]))
    blocks = m.block_of[groups * _GROUP][:, None, None]
    flat = m.shared.flat(blocks, address)
    if m.races:
        # Each of the four warps may read any element.
        lanes = np.repeat(groups * _GROUP, rows * shape.k)
        for warp in range(4):
            m.races.read(step, lanes + 32 * warp, flat.reshape(-1), size, product.clocks)
    bits, holes = m.shared.load(flat.reshape(-1), size, 1)
    if holes is not None:
        missing.append(holes.reshape(len(groups), -1).max(1))
    if shape.kind == "tf32":
        return multiplicands(bits.reshape(flat.shape), "tf32")[..., 0]
    return halves(bits.reshape(flat.shape), shape.kind)
