"""Moves, conversions, comparisons and selections (PTX ISA 9.7.6, 9.7.9)."""

import numpy as np

from .arithmetic import read_float
from .formats import FLOAT_KINDS, bf16_bits, encode, flush, to_tf32
from .handlers import instruction
from .program import Operand, Pair, Vector
from .step import Step
from .values import DTYPES, UNSIGNED

SHARED_WINDOW = 1 << 56
"""Generic addresses from here on are shared memory, from LOCAL_WINDOW on a thread's own."""
LOCAL_WINDOW = 2 << 56


@instruction("mov")
def mov(step: Step) -> None:
    """Also packs narrow registers into a wide one, and unpacks; the first is the lowest."""
    destination, source = step.instruction.operands
    kind = step.instruction.kind
    if isinstance(source, Vector):
        total = UNSIGNED[DTYPES[kind].itemsize]
        part = total.itemsize // len(source.items)
        packed = np.zeros((), total)
        for place, item in enumerate(source.items):
            piece = step.read(item, f"b{8 * part}").astype(total)
            packed = packed | piece << total.type(8 * part * place)
        step.write(destination, packed)
    elif isinstance(destination, Vector):
        bits = step.read(source, kind).view(UNSIGNED[DTYPES[kind].itemsize])
        part = bits.dtype.itemsize // len(destination.items)
        for place, item in enumerate(destination.items):
            piece = bits >> bits.dtype.type(8 * part * place)
            step.write(item, piece.astype(UNSIGNED[part]))
    else:
        step.write(destination, step.read(source, kind))


@instruction("cvta", modifiers="to global shared local shared::cta param const")
def cvta(step: Step) -> None:
    """Generic addresses of global memory are global addresses; other spaces have a window."""
    destination, source = step.instruction.operands
    modifiers = step.instruction.modifiers
    value = step.read(source, step.instruction.kind)
    window = 0
    if modifiers & {"shared", "shared::cta"}:
        window = SHARED_WINDOW
    elif "local" in modifiers:
        window = LOCAL_WINDOW
    elif modifiers & {"param", "const"}:
        raise step.unsupported("a generic address in this space")
    step.write(
        destination, value - window if "to" in modifiers else value + value.dtype.type(window)
    )


@instruction("selp")
def select(step: Step) -> None:
    """Undefined only where the chosen side or the choice is."""
    destination, a, b, condition = step.instruction.operands
    kind = step.instruction.kind
    choice = step.read(condition, "pred")
    (x, x_undefined), (y, y_undefined) = (step.read_apart(v, kind) for v in (a, b))
    if x_undefined is not None or y_undefined is not None:
        step.note(
            np.where(
                choice,
                np.uint8(0) if x_undefined is None else x_undefined,
                np.uint8(0) if y_undefined is None else y_undefined,
            )
        )
    step.write(destination, np.where(choice, x, y))


_COMPARE = {
    "eq": np.equal,
    "ne": np.not_equal,
    **dict.fromkeys(("lt", "lo"), np.less),
    **dict.fromkeys(("le", "ls"), np.less_equal),
    **dict.fromkeys(("gt", "hi"), np.greater),
    **dict.fromkeys(("ge", "hs"), np.greater_equal),
}
_COMBINE = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


def _read_typed(step: Step, operand: Operand, kind: str) -> np.ndarray:
    if kind in FLOAT_KINDS:
        return read_float(step, operand, kind)
    return step.read(operand, kind)


@instruction(
    "setp",
    modifiers=" ".join([*_COMPARE, *_COMBINE, *"equ neu ltu leu gtu geu num nan ftz".split()]),
)
def set_predicate(step: Step) -> None:
    """Comparisons that end in u are also true where an operand is NaN."""
    kind, name = step.instruction.kind, step.instruction.parts[1]
    destination, a, b, *third = step.instruction.operands
    x, y = _read_typed(step, a, kind), _read_typed(step, b, kind)
    if kind in FLOAT_KINDS:
        unordered = np.isnan(x) | np.isnan(y)
        if name in ("num", "nan"):
            result = unordered if name == "nan" else ~unordered
        elif name in _COMPARE:
            result = _COMPARE[name](x, y) & (~unordered if name == "ne" else True)
        else:
            result = _COMPARE[name[:2]](x, y) | unordered
    else:
        result = _COMPARE[name](x, y)
    opposite = ~np.asarray(result)
    if third:
        combine = _COMBINE[step.instruction.parts[2]]
        other = step.read(third[0], "pred")
        result, opposite = combine(result, other), combine(opposite, other)
    if isinstance(destination, Pair):
        for register, value in ((destination.first, result), (destination.second, opposite)):
            if register is not None:
                step.write(register, value)
    else:
        step.write(destination, result)


_INTEGER_ROUNDING = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


@instruction("cvt", modifiers="rn rz rna rni rzi rmi rpi ftz sat relu")
def convert(step: Step) -> None:
    *_, target, source = step.instruction.parts
    destination, *operands = step.instruction.operands
    modifiers = step.instruction.modifiers
    values = [_read_typed(step, operand, source) for operand in operands]
    if target in FLOAT_KINDS | {"tf32"}:
        if "relu" in modifiers:
            values = [
                np.where(v > 0, v, np.where(np.isnan(v), v, 0)).astype(v.dtype) for v in values
            ]
        step.write(destination, _to_float(step, values, source, target))
    elif "sat" in modifiers or "relu" in modifiers:
        raise step.unsupported("this conversion")
    elif source in FLOAT_KINDS:
        step.write(destination, _to_integer(step, values[0], target))
    else:
        step.write(destination, values[0].astype(DTYPES[target]))


def _to_float(step: Step, values: list[np.ndarray], source: str, target: str) -> np.ndarray:
    modifiers = step.instruction.modifiers
    if target == "tf32":
        return to_tf32(values[0], away="rna" in modifiers)
    if target.endswith("x2"):  # the first operand becomes the upper half
        upper, lower = (_narrow(step, v, target[:-2]).astype(np.uint32) for v in values)
        return upper << np.uint32(16) | lower
    value = values[0]
    if source in FLOAT_KINDS:
        for name in modifiers & _INTEGER_ROUNDING.keys():
            value = _INTEGER_ROUNDING[name](value)
        if "sat" in modifiers:  # NaN becomes 0
            value = np.fmin(np.fmax(value, 0), 1)
        if target in ("bf16", "f16"):
            return _narrow(step, value, target)
    if "rz" in modifiers or "rna" in modifiers:
        raise step.unsupported("this rounding")
    if target in ("f32", "f64"):
        value = np.asarray(value).astype(DTYPES[target])
        return flush(value) if "ftz" in modifiers and target == "f32" else value
    return encode(value, target)


def _narrow(step: Step, value: np.ndarray, target: str) -> np.ndarray:
    """float32 to a half, as bits."""
    toward_zero = "rz" in step.instruction.modifiers
    if target == "bf16":
        return bf16_bits(value, toward_zero=toward_zero)
    if toward_zero:
        raise step.unsupported("this rounding")
    return np.asarray(value).astype(np.float16).view(np.uint16)


def _to_integer(step: Step, value: np.ndarray, target: str) -> np.ndarray:
    """Values beyond the type's range become its ends, NaN becomes 0."""
    rounding = step.instruction.modifiers & _INTEGER_ROUNDING.keys()
    if not rounding:
        raise step.unsupported("a conversion to an integer without a rounding")
    whole = _INTEGER_ROUNDING[next(iter(rounding))](value.astype(np.float64))
    limits = np.iinfo(DTYPES[target])
    # float() of a 64-bit end is the power of two just beyond it: equality is outside as well.
    low, high = float(limits.min), float(limits.max)
    result = np.where((whole > low) & (whole < high), whole, 0.0).astype(DTYPES[target])
    result = np.where(whole >= high, limits.max, result)
    return np.where(whole <= low, limits.min, result).astype(DTYPES[target])


@instruction("isspacep", modifiers="global shared shared::cta local")
def is_in_space(step: Step) -> None:
    destination, source = step.instruction.operands
    window = step.read(source, "u64") >> np.uint64(56)
    space = step.instruction.parts[1]
    wanted = {"global": 0, "shared": 1, "shared::cta": 1, "local": 2}[space]
    step.write(destination, window == np.uint64(wanted))
