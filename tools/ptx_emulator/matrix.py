"""Matrix instructions of a warp: mma, ldmatrix, stmatrix (PTX ISA 9.7.14)."""

from __future__ import annotations

import re

import numpy as np

from .access import items_of
from .addressing import addresses_of, require_landed, shared_places
from .formats import halves
from .handlers import instruction
from .program import Operand
from .step import Step
from .values import ACCUMULATING


def multiplicands(bits: np.ndarray, kind: str) -> np.ndarray:
    """float32 values of packed operands: two halves a word, or one tf32, on a new last axis."""
    if kind == "tf32":
        # Tensor cores do not look at the lower bits.
        return (bits & np.uint32(0xFFFFE000)).view(np.float32)[..., None]
    return halves(np.ascontiguousarray(bits)[..., None].view(np.uint16), kind)


def read_fragment(step: Step, items: tuple[Operand, ...], kind: str) -> np.ndarray:
    """A warp's registers as 8 x (4 words) pieces: [warps, pieces, 8, values]."""
    words = [step.spread(step.read(item, "b32")).reshape(-1, 32) for item in items]
    values = multiplicands(np.stack(words, 1), kind)  # [warps, pieces, 32, per word]
    warps, pieces = values.shape[:2]
    return values.reshape(warps, pieces, 8, -1)


def a_matrix(pieces: np.ndarray) -> np.ndarray:
    """[..., 4, 8, k] pieces to [..., 16, 2 k]: rows 0-7, 8-15, then the second half of k."""
    upper = np.concatenate([pieces[..., 0, :, :], pieces[..., 2, :, :]], -1)
    lower = np.concatenate([pieces[..., 1, :, :], pieces[..., 3, :, :]], -1)
    return np.concatenate([upper, lower], -2)


def multiply(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Products of [..., m, k] and [..., k, n]. In float64: the machine's order is not known."""
    return np.matmul(a.astype(np.float64), b.astype(np.float64))


@instruction("mma", modifiers="sync aligned m16n8k16 m16n8k8 row col")
def mma(step: Step) -> None:
    """D = A B + C, for A of 16 x k and B of k x 8, in halves or tf32, with float32 sums."""
    d, a, b, c = (items_of(operand) for operand in step.instruction.operands)
    *_, shape, row, column, d_kind, a_kind, b_kind, c_kind = step.instruction.parts
    k = int(shape.rsplit("k", 1)[1])
    known = {("bf16", 16), ("f16", 16), ("tf32", 8)}
    if (a_kind, k) not in known or (d_kind, c_kind, a_kind) != ("f32", "f32", b_kind):
        raise step.unsupported("this matrix product")
    if (row, column) != ("row", "col"):
        raise step.unsupported("this layout")
    left = a_matrix(read_fragment(step, a, a_kind))
    right = read_fragment(step, b, b_kind)  # [warps, 2, n, k / 2]
    right = np.concatenate([right[:, 0], right[:, 1]], -1).transpose(0, 2, 1)
    sums = [step.spread(step.read(item, "f32")).reshape(-1, 8, 4) for item in c]
    total = np.zeros((len(left), 16, 8))
    for place, value in enumerate(sums):
        total[:, 8 * (place // 2) :, place % 2 :: 2][:, :8] = value
    total = (total + multiply(left, right)).astype(np.float32)
    if step.undefined is not None:
        # An undefined element spoils a row or a column; that is here the warp's whole result.
        step.undefined = np.repeat(step.undefined.reshape(-1, 32).max(1), 32)
    for place, item in enumerate(d):
        piece = total[:, 8 * (place // 2) :, place % 2 :: 2][:, :8]
        step.write(item, np.ascontiguousarray(piece).reshape(-1))
    step.machine.counts.mma_flops += len(step.active) // 32 * 2 * 16 * 8 * k


def _matrix_rows(step: Step, operand: Operand, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Shared places of the rows of ``count`` 8 x 8 matrices: [warps, count, 8]; and the lanes.

    Lane 8 i + j names row j of matrix i. Lanes that name none may hold any address.
    """
    lanes = step.active.reshape(-1, 32)[:, : 8 * count]
    addresses = addresses_of(step, operand).reshape(-1, 32)[:, : 8 * count]
    flat_lanes = np.ascontiguousarray(lanes).reshape(-1)
    places = shared_places(step, flat_lanes, np.ascontiguousarray(addresses).reshape(-1), 16)
    m = step.machine
    # Each matrix is one pass, plus one for every row that finds its banks taken.
    banks = (places // 16 % 8).reshape(-1, 8)
    taken = np.zeros((len(banks), 8), np.int64)
    np.add.at(taken, (np.arange(len(banks))[:, None], banks), 1)
    m.counts.shared_wavefronts += int(taken.max(1).sum())
    m.counts.shared_wavefronts_ideal += len(banks)
    return places.reshape(-1, count, 8), flat_lanes


def _matrix_count(step: Step) -> int:
    if not {"m8n8", "b16"} <= step.instruction.modifiers:
        raise step.unsupported("this matrix")
    return int(next(p for p in step.instruction.parts if re.fullmatch(r"x[124]", p))[1:])


@instruction("ldmatrix", modifiers="sync aligned m8n8 x1 x2 x4 trans shared shared::cta")
def load_matrix(step: Step) -> None:
    destination, source = step.instruction.operands
    count = _matrix_count(step)
    places, lanes = _matrix_rows(step, source, count)
    m = step.machine
    flat = places.reshape(-1)
    if m.races:
        m.races.read(step, lanes, flat, 16)
    bits, holes = m.shared.load(flat, 2, 8)
    matrices = bits.reshape(-1, count, 8, 8)
    missing = None if holes is None else holes.reshape(-1, count, 8, 8)
    if "trans" in step.instruction.modifiers:
        matrices = matrices.swapaxes(2, 3)
        missing = None if missing is None else missing.swapaxes(2, 3)
    for place, item in enumerate(items_of(destination)):
        words = np.ascontiguousarray(matrices[:, place]).view(np.uint32).reshape(-1)
        undefined = None
        if missing is not None:
            pairs = missing[:, place].reshape(-1, 2).max(1)
            undefined = m.expand(step, pairs) if pairs.any() else None
        step.write_apart(item, m.expand(step, words), undefined)


@instruction("stmatrix", modifiers="sync aligned m8n8 x1 x2 x4 trans shared shared::cta")
def store_matrix(step: Step) -> None:
    target, source = step.instruction.operands
    count = _matrix_count(step)
    places, lanes = _matrix_rows(step, target, count)
    m = step.machine
    for place, item in enumerate(items_of(source)):
        value, undefined = step.read_apart(item, "b32")
        words = np.ascontiguousarray(step.spread(value)[step.mask]).view(np.uint16)
        matrices = words.reshape(-1, 8, 8)
        holes = None
        if undefined is not None:
            holes = np.repeat(undefined[step.mask], 2).reshape(-1, 8, 8) & ~ACCUMULATING
        if "trans" in step.instruction.modifiers:
            matrices = matrices.swapaxes(1, 2)
            holes = None if holes is None else holes.swapaxes(1, 2)
        rows = np.ascontiguousarray(matrices).reshape(-1, 8)
        flat = np.ascontiguousarray(places[:, place]).reshape(-1)
        who = lanes.reshape(-1, count, 8)[:, place].reshape(-1)
        require_landed(step, who, flat, 16)
        if m.races:
            m.races.write(step, who, flat, 16, rows)
        missing = None if holes is None else np.ascontiguousarray(holes).reshape(-1, 8)
        m.shared.store(flat, rows, missing)
