"""Arithmetic that integers and floats share, and floats alone (PTX ISA 9.7.1, 9.7.3, 9.7.4)."""

from collections.abc import Callable
from functools import partial

import numpy as np

from .formats import (
    FLOAT_KINDS,
    add_toward,
    decode,
    encode,
    flush,
    fused_multiply_add,
    fused_multiply_add_double,
    toward,
)
from .handlers import instruction
from .integer import divide, multiply
from .program import Operand
from .step import Step
from .values import DTYPES

Function = Callable[..., np.ndarray]


def read_float(step: Step, operand: Operand, kind: str) -> np.ndarray:
    value = decode(step.read(operand, kind), kind)
    if "ftz" not in step.instruction.modifiers:
        return value
    if kind != "f32":
        raise step.unsupported(f".ftz with .{kind}")
    return flush(value)


def write_float(step: Step, value: np.ndarray, kind: str) -> None:
    if "ftz" in step.instruction.modifiers:
        value = flush(value)
    step.write(step.instruction.operands[0], encode(value, kind))


def _compute(step: Step, on_floats: Function, on_integers: Function | None) -> None:
    """Applies a function to all sources in the instruction's type."""
    kind = step.instruction.kind
    destination, *sources = step.instruction.operands
    if kind in FLOAT_KINDS:
        write_float(step, on_floats(*(read_float(step, s, kind) for s in sources)), kind)
    elif on_integers is not None and kind in DTYPES:
        step.write(destination, on_integers(*(step.read(s, kind) for s in sources)))
    else:
        raise step.unsupported(f"the type .{kind}")


def _direction(step: Step) -> str | None:
    """A rounding other than to nearest; here only float32 has any."""
    for mode in step.instruction.modifiers & {"rz", "rm", "rp"}:
        if step.instruction.kind != "f32":
            raise step.unsupported(f".{mode} of .{step.instruction.kind}")
        return mode
    return None


@instruction("add", modifiers="rn rz rm rp ftz")
def add(step: Step) -> None:
    mode = _direction(step)
    _compute(step, np.add if mode is None else partial(add_toward, mode=mode), np.add)


@instruction("sub", modifiers="rn rz rm rp ftz")
def subtract(step: Step) -> None:
    mode = _direction(step)
    on_floats = np.subtract if mode is None else lambda a, b: add_toward(a, -b, mode)
    _compute(step, on_floats, np.subtract)


@instruction("mul", modifiers="lo hi wide rn rz rm rp ftz")
def mul(step: Step) -> None:
    mode = _direction(step)
    if mode is not None:
        _compute(step, lambda a, b: toward(a.astype(np.float64) * b, mode), None)
    elif step.instruction.kind in FLOAT_KINDS:
        _compute(step, np.multiply, None)
    else:
        step.write(step.instruction.operands[0], multiply(step))


@instruction("neg", modifiers="ftz")
def negate(step: Step) -> None:
    _compute(step, np.negative, np.negative)


@instruction("abs", modifiers="ftz")
def absolute(step: Step) -> None:
    _compute(step, np.abs, np.abs)


@instruction("min", modifiers="ftz NaN")
def minimum(step: Step) -> None:
    quiet = "NaN" not in step.instruction.modifiers
    _compute(step, np.fmin if quiet else np.minimum, np.minimum)


@instruction("max", modifiers="ftz NaN")
def maximum(step: Step) -> None:
    quiet = "NaN" not in step.instruction.modifiers
    _compute(step, np.fmax if quiet else np.maximum, np.maximum)


@instruction("fma", modifiers="rn rz rm rp ftz")
def fma(step: Step) -> None:
    kind, mode = step.instruction.kind, _direction(step)
    if kind == "f32":
        _compute(step, partial(fused_multiply_add, mode=mode or "rn"), None)
    elif kind == "f64":
        _compute(step, fused_multiply_add_double, None)
    else:
        # Products of two halves are exact in the float64 that they are decoded to.
        _compute(step, lambda a, b, c: a * b + c, None)


@instruction("copysign")
def copy_sign(step: Step) -> None:
    """The sign is that of the first source, unlike C's."""
    _compute(step, lambda sign, value: np.copysign(value, sign), None)


@instruction("div", modifiers="rn full approx ftz")
def div(step: Step) -> None:
    modifiers = step.instruction.modifiers
    if step.instruction.kind == "f32" and modifiers & {"full", "approx"}:
        _, a, b = step.instruction.operands
        x, y = (read_float(step, v, "f32").astype(np.float64) for v in (a, b))
        result = approximate(step, x / y, y.astype(np.float32), relative=2.0**-22)
        if "approx" in modifiers:  # 9.7.3, div: divisors this large give zeros
            huge = (np.abs(y) > 2.0**126) & np.isfinite(y)
            zero = np.copysign(np.float32(0), result)
            result = np.where(huge, np.where(np.isinf(x), np.float32(np.nan), zero), result)
        write_float(step, result, "f32")
    else:
        _compute(step, np.divide, divide)


def approximate(
    step: Step, exact: np.ndarray, argument: np.ndarray, *, relative: float, absolute: float = 0.0
) -> np.ndarray:
    """The result of an ``.approx`` instruction in float32, from the exact one in float64.

    Under ``Conditions.approximate`` it is off by the full error that the PTX ISA allows it, up or
    down by a hash of the argument: the same argument gives the same result, as on the machine.
    """
    seed = step.machine.conditions.approximate
    if seed is None:
        return exact.astype(np.float32)
    bits = np.asarray(argument, np.float32).view(np.uint32) ^ np.uint32(seed * 0x9E3779B1 % 2**32)
    sign = np.where((bits * np.uint32(0x85EBCA6B)) >> np.uint32(31), 1.0, -1.0)
    return (exact * (1 + sign * relative) + sign * absolute).astype(np.float32)


def _unary(step: Step, function: Function, relative: float, absolute: float = 0.0) -> None:
    if step.instruction.kind != "f32" or "approx" not in step.instruction.modifiers:
        raise step.unsupported()
    argument = read_float(step, step.instruction.operands[1], "f32")
    exact = function(argument.astype(np.float64))
    result = approximate(step, exact, argument, relative=relative, absolute=absolute)
    write_float(step, result, "f32")


# The error bounds are those of the PTX ISA, 9.7.3, for the full range unless said.


@instruction("ex2", modifiers="approx ftz")
def power_of_two(step: Step) -> None:
    _unary(step, np.exp2, 2.0**-22)


@instruction("lg2", modifiers="approx ftz")
def binary_logarithm(step: Step) -> None:
    """An absolute error for arguments in (1/2, 2), a relative one elsewhere."""
    argument = read_float(step, step.instruction.operands[1], "f32")
    near_one = (argument > 0.5) & (argument < 2)
    exact = np.log2(argument.astype(np.float64))
    inside = approximate(step, exact, argument, relative=0.0, absolute=2.0**-22)
    outside = approximate(step, exact, argument, relative=2.0**-22)
    write_float(step, np.where(near_one, inside, outside), "f32")


@instruction("rcp", modifiers="approx rn ftz")
def reciprocal(step: Step) -> None:
    if "rn" in step.instruction.modifiers:
        _compute(step, lambda a: a.dtype.type(1) / a, None)
    else:
        _unary(step, lambda a: 1 / a, 2.0**-23)


@instruction("sqrt", modifiers="approx rn ftz")
def square_root(step: Step) -> None:
    if "rn" in step.instruction.modifiers:
        _compute(step, np.sqrt, None)
    else:
        _unary(step, np.sqrt, 2.0**-23)


@instruction("rsqrt", modifiers="approx ftz")
def reciprocal_square_root(step: Step) -> None:
    _unary(step, lambda a: 1 / np.sqrt(a), 2.0**-22.9)


@instruction("tanh", modifiers="approx")
def hyperbolic_tangent(step: Step) -> None:
    _unary(step, np.tanh, 2.0**-11)


@instruction("sin", modifiers="approx ftz")
def sine(step: Step) -> None:
    _unary(step, np.sin, 0.0, 2.0**-20.5)


@instruction("cos", modifiers="approx ftz")
def cosine(step: Step) -> None:
    _unary(step, np.cos, 0.0, 2.0**-20.5)
