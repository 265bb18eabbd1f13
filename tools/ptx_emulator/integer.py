"""Integer, logic and shift instructions (PTX ISA 9.7.1, 9.7.2, 9.7.8)."""

import numpy as np

from .handlers import instruction
from .program import Immediate
from .step import Step
from .values import DTYPES


def wide_kind(kind: str) -> str:
    """The type of twice the width."""
    return kind[0] + str(2 * int(kind[1:]))


def multiply_high(a: np.ndarray, b: np.ndarray, kind: str) -> np.ndarray:
    """The upper half of a product."""
    bits = int(kind[1:])
    if bits < 64:
        wide = DTYPES[wide_kind(kind)]
        return (a.astype(wide) * b.astype(wide) >> wide.type(bits)).astype(DTYPES[kind])
    product = a.astype(object) * b.astype(object)
    upper = np.asarray((product >> 64) & ((1 << 64) - 1), dtype=object)
    return upper.astype(np.uint64).view(DTYPES[kind])


def multiply(step: Step) -> np.ndarray:
    """The product part of mul and mad, in the type of the result."""
    ins = step.instruction
    kind = ins.kind
    a, b = step.read(ins.operands[1], kind), step.read(ins.operands[2], kind)
    if "wide" in ins.modifiers:
        wide = DTYPES[wide_kind(kind)]
        return a.astype(wide) * b.astype(wide)
    return multiply_high(a, b, kind) if "hi" in ins.modifiers else a * b


@instruction("mad", modifiers="lo hi wide")
def mad(step: Step) -> None:
    ins = step.instruction
    kind = wide_kind(ins.kind) if "wide" in ins.modifiers else ins.kind
    step.write(ins.operands[0], multiply(step) + step.read(ins.operands[3], kind))


@instruction("rem")
def rem(step: Step) -> None:
    destination, a, b = step.instruction.operands
    kind = step.instruction.kind
    x, y = step.read(a, kind), step.read(b, kind)
    # numpy's remainder has the sign of the divisor; C's, and PTX's, that of the dividend.
    step.write(destination, np.fmod(x, y))


def divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Rounds towards zero, as numpy's // does not."""
    if a.dtype.kind == "u":
        return a // b
    quotient = a // b
    return quotient + ((quotient < 0) & (quotient * b != a)).astype(a.dtype)


@instruction("and", "or", "xor")
def logic(step: Step) -> None:
    """A defined operand can settle the result: ``x & 0`` is 0 whatever x is."""
    name, kind = step.instruction.parts[0], step.instruction.kind
    destination, *sources = step.instruction.operands
    (a, a_undefined), (b, b_undefined) = (step.read_apart(s, kind) for s in sources)
    function = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}[name]
    if a_undefined is not None or b_undefined is not None:
        none = np.zeros(step.mask.shape, np.uint8)
        ua = none if a_undefined is None else a_undefined
        ub = none if b_undefined is None else b_undefined
        if name != "xor":
            settles = DTYPES[kind].type(0) if name == "and" else ~np.zeros((), DTYPES[kind])
            ua, ub = (
                np.where((ub == 0) & (b == settles), 0, ua),
                np.where((ua == 0) & (a == settles), 0, ub),
            )
        step.note(np.maximum(ua, ub))
    step.write(destination, function(a, b))


@instruction("not")
def invert(step: Step) -> None:
    destination, a = step.instruction.operands
    step.write(destination, ~step.read(a, step.instruction.kind))


@instruction("shl", "shr")
def shift(step: Step) -> None:
    """Amounts from the width up shift everything out (9.7.8: shl, shr)."""
    destination, a, amount = step.instruction.operands
    kind = step.instruction.kind
    value, by = step.read(a, kind), step.read(amount, "u32")
    bits = 8 * value.dtype.itemsize
    if step.instruction.parts[0] == "shr" and value.dtype.kind == "i":
        step.write(destination, value >> np.minimum(by, bits - 1).astype(value.dtype))
        return
    small = np.minimum(by, bits - 1).astype(value.dtype)
    left = step.instruction.parts[0] == "shl"
    moved = value << small if left else value >> small
    step.write(destination, np.where(by >= bits, value.dtype.type(0), moved))


@instruction("shf", modifiers="l r wrap clamp")
def funnel_shift(step: Step) -> None:
    """Shifts the pair (b, a) and keeps its upper (left) or lower (right) word."""
    destination, a, b, amount = step.instruction.operands
    low, high, by = (step.read(x, "u32").astype(np.uint64) for x in (a, b, amount))
    by = by & np.uint64(31) if "wrap" in step.instruction.modifiers else np.minimum(by, 32)
    pair = high << np.uint64(32) | low
    if "l" in step.instruction.modifiers:
        moved = pair << by.astype(np.uint64) >> np.uint64(32)
    else:
        moved = pair >> by.astype(np.uint64)
    step.write(destination, moved.astype(np.uint32))


@instruction("bfe")
def bit_field_extract(step: Step) -> None:
    destination, a, start, length = step.instruction.operands
    kind = step.instruction.kind
    bits = 8 * DTYPES[kind].itemsize
    value = step.read(a, kind)
    first = np.asarray(step.read(start, "u32") & 0xFF)
    size = np.minimum(step.read(length, "u32") & 0xFF, bits)
    # A field that leaves the value is filled with its sign, or zeros: shifting up and down does it.
    up = np.clip(bits - size.astype(np.int64) - first, 0, bits - 1).astype(value.dtype)
    inside = value >> np.minimum(first, bits - 1).astype(value.dtype)
    beyond = first >= bits
    sign = value >> value.dtype.type(bits - 1) if kind[0] == "s" else value.dtype.type(0)
    down = np.clip(bits - size.astype(np.int64), 0, bits - 1).astype(value.dtype)
    field = np.where(first + size >= bits, inside, value << up >> down)
    field = np.where(beyond, sign, field)
    step.write(destination, np.where(size == 0, value.dtype.type(0), field))


@instruction("bfi")
def bit_field_insert(step: Step) -> None:
    destination, a, b, start, length = step.instruction.operands
    kind = step.instruction.kind
    dtype = DTYPES[kind]
    bits = 8 * dtype.itemsize
    field, base = step.read(a, kind), step.read(b, kind)
    first = (step.read(start, "u32") & 0xFF).astype(np.int64)
    size = np.minimum((step.read(length, "u32") & 0xFF).astype(np.int64), bits - first)
    shift_by = np.clip(first, 0, bits - 1).astype(dtype)
    ones = ~np.zeros((), dtype)
    keep = np.where(
        size <= 0, dtype.type(0), ones >> np.clip(bits - size, 0, bits - 1).astype(dtype)
    )
    place = keep << shift_by
    step.write(destination, (base & ~place) | (field << shift_by & place))


@instruction("bfind", modifiers="shiftamt")
def find_leading_bit(step: Step) -> None:
    destination, a = step.instruction.operands
    value = step.read(a, step.instruction.kind)
    bits = 8 * value.dtype.itemsize
    value = np.where(value < 0, ~value, value) if value.dtype.kind == "i" else value
    position = _bit_length(value) - 1
    if "shiftamt" in step.instruction.modifiers:
        position = np.where(position < 0, position, bits - 1 - position)
    step.write(destination, position.astype(np.int32))


@instruction("clz")
def count_leading_zeros(step: Step) -> None:
    destination, a = step.instruction.operands
    value = step.read(a, step.instruction.kind)
    step.write(destination, (8 * value.dtype.itemsize - _bit_length(value)).astype(np.uint32))


def _bit_length(value: np.ndarray) -> np.ndarray:
    unsigned = np.asarray(value).astype(np.uint64)
    length = np.zeros(unsigned.shape, np.int64)
    for step in (32, 16, 8, 4, 2, 1):
        upper = unsigned >> np.uint64(step)
        length = np.where(upper > 0, length + step, length)
        unsigned = np.where(upper > 0, upper, unsigned)
    return length + (unsigned > 0)


@instruction("popc")
def population_count(step: Step) -> None:
    destination, a = step.instruction.operands
    value = step.read(a, step.instruction.kind)
    step.write(destination, np.bitwise_count(value).astype(np.uint32))


@instruction("brev")
def bit_reverse(step: Step) -> None:
    destination, a = step.instruction.operands
    value = np.asarray(step.read(a, step.instruction.kind))
    octets = np.ascontiguousarray(value)[..., None].view(np.uint8)
    bits = np.unpackbits(octets, axis=-1, bitorder="little")[..., ::-1]
    packed = np.packbits(bits, axis=-1, bitorder="little")
    step.write(destination, np.ascontiguousarray(packed).view(value.dtype)[..., 0])


@instruction("prmt")
def permute_bytes(step: Step) -> None:
    destination, a, b, selector = step.instruction.operands
    low, high, chosen = (step.read(x, "u32").astype(np.uint64) for x in (a, b, selector))
    pair = high << np.uint64(32) | low
    result = np.zeros((), np.uint64)
    for place in range(4):
        nibble = chosen >> np.uint64(4 * place)
        octet = pair >> ((nibble & np.uint64(7)) * np.uint64(8)) & np.uint64(0xFF)
        # Bit 3 of a selector asks for the byte's sign, eight times.
        sign = (octet >> np.uint64(7)) * np.uint64(0xFF)
        octet = np.where(nibble & np.uint64(8) != 0, sign, octet)
        result = result | octet << np.uint64(8 * place)
    step.write(destination, np.asarray(result).astype(np.uint32))


@instruction("lop3")
def three_input_logic(step: Step) -> None:
    destination, *sources, table = step.instruction.operands
    assert isinstance(table, Immediate)
    a, b, c = (step.read(x, "u32") for x in sources)
    result = np.zeros(step.mask.shape, np.uint32)
    for row in range(8):
        if int(table.text, 0) >> row & 1:
            result |= (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
    step.write(destination, result)
