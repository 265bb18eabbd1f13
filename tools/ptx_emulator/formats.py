"""Floating-point formats: what bits mean, and rounding to them once."""

import numpy as np

from .values import DTYPES

FLOAT_KINDS = {"f16", "bf16", "f16x2", "bf16x2", "f32", "f64"}
_SMALLEST_NORMAL = np.float32(2.0**-126)


def decode(bits: np.ndarray, kind: str) -> np.ndarray:
    """Values: halves as float64, in which their products are exact; pairs on a last axis of 2."""
    if kind in ("f32", "f64"):
        return bits.view(DTYPES[kind])
    if kind.endswith("x2"):
        bits = np.ascontiguousarray(bits)[..., None].view(np.uint16)
    return halves(bits, kind).astype(np.float64)


def halves(bits: np.ndarray, kind: str) -> np.ndarray:
    """float32 values of 16-bit floats; ``kind`` may be that of a pair."""
    if kind.startswith("bf16"):
        return (bits.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
    return bits.view(np.float16).astype(np.float32)


def encode(value: np.ndarray, kind: str) -> np.ndarray:
    """The inverse of ``decode``: rounded to nearest, even on ties."""
    if kind in ("f32", "f64"):
        return value.astype(DTYPES[kind])
    if kind.startswith("f16"):
        bits = np.asarray(value, np.float16).view(np.uint16)
    else:
        bits = bf16_from_double(np.asarray(value, np.float64))
    if not kind.endswith("x2"):
        return bits.view(DTYPES[kind])
    return np.ascontiguousarray(bits).view(np.uint32)[..., 0]


def bf16_bits(value: np.ndarray, *, toward_zero: bool = False) -> np.ndarray:
    """float32 to bfloat16."""
    bits = np.asarray(value, np.float32).view(np.uint32)
    rounded = bits
    if not toward_zero:
        rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    # The only NaN that conversions return (PTX ISA, cvt).
    return np.where(np.isnan(value), np.uint32(0x7FFF), rounded >> np.uint32(16)).astype(np.uint16)


def bf16_from_double(value: np.ndarray) -> np.ndarray:
    """float64 to bfloat16 in one rounding, for normal results."""
    bits = value.view(np.uint64)
    half = np.uint64((1 << 44) - 1)
    rounded = bits + half + ((bits >> np.uint64(45)) & np.uint64(1))
    cut = (rounded >> np.uint64(45) << np.uint64(45)).view(np.float64)
    finite = np.isfinite(value) & (np.abs(value) >= _SMALLEST_NORMAL)
    return bf16_bits(np.where(finite, cut, value).astype(np.float32))


def flush(value: np.ndarray) -> np.ndarray:
    """``.ftz``: subnormal float32 values become zeros of their sign."""
    small = np.abs(value) < _SMALLEST_NORMAL
    return np.where(small, np.copysign(np.float32(0), value), value)


def two_sum(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``a + b`` in float64 and what rounding left out of it."""
    total = a + b
    back = total - a
    return total, (a - (total - back)) + (b - back)


def _to_odd(value: np.ndarray, error: np.ndarray) -> np.ndarray:
    """A rounded float64 sum, rounded to odd instead: a second rounding, to fewer bits or after one
    more addition, then gives what it would give for the exact sum."""
    value = np.asarray(value)
    even = value.view(np.uint64) & np.uint64(1) == 0
    nudged = np.nextafter(value, np.copysign(np.inf, error))
    return np.where(even & (error != 0) & np.isfinite(value), nudged, value)


def fused_multiply_add(
    a: np.ndarray, b: np.ndarray, c: np.ndarray, *, mode: str = "rn"
) -> np.ndarray:
    """``a * b + c`` of float32 values, rounded once.

    The product is exact in float64. Rounding the sum there and again to float32 goes wrong only
    where the first rounding lands on a tie of the second, or where the result is subnormal; and
    always where the second is not to the nearest.
    """
    product = a.astype(np.float64) * b.astype(np.float64)
    addend = np.asarray(c).astype(np.float64)
    total = np.asarray(product + addend)
    if mode != "rn":
        return toward(_to_odd(*two_sum(product, addend)), mode)
    doubtful = total.view(np.uint64) & np.uint64(0x1FFFFFFF) == np.uint64(0x10000000)
    doubtful |= (np.abs(total) < _SMALLEST_NORMAL) & (total != 0)
    if doubtful.any():
        total = np.where(doubtful, _to_odd(*two_sum(product, addend)), total)
    return total.astype(np.float32)


def add_toward(a: np.ndarray, b: np.ndarray, mode: str) -> np.ndarray:
    """A sum of float32 values in a directed rounding."""
    return toward(_to_odd(*two_sum(a.astype(np.float64), b.astype(np.float64))), mode)


def toward(value: np.ndarray, mode: str) -> np.ndarray:
    """float64 to float32: ``rz`` towards zero, ``rm`` down, ``rp`` up."""
    nearest = value.astype(np.float32)
    target = {"rz": np.float32(0), "rm": np.float32(-np.inf), "rp": np.float32(np.inf)}[mode]
    beyond = {
        "rz": np.abs(nearest) > np.abs(value),
        "rm": nearest > value,
        "rp": nearest < value,
    }[mode]
    return np.where(beyond, np.nextafter(nearest, target), nearest)


def fused_multiply_add_double(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """``a * b + c`` of float64 values, rounded once (Boldo and Melquiond 2008), provided that no
    part overflows or underflows."""
    product = a * b
    (a1, a2), (b1, b2) = _split(a), _split(b)
    low = ((a1 * b1 - product) + a1 * b2 + a2 * b1) + a2 * b2
    middle, left = two_sum(np.asarray(c), low)
    high, rest = two_sum(product, middle)
    exact = high + _to_odd(*two_sum(left, rest))
    return np.where(np.isfinite(product) & np.isfinite(exact), exact, product + c)


def _split(value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two halves of a float64's mantissa (Veltkamp)."""
    scaled = value * 134217729.0
    upper = scaled - (scaled - value)
    return upper, value - upper


def to_tf32(value: np.ndarray, *, away: bool) -> np.ndarray:
    """float32 rounded to ten mantissa bits, as float32 bits."""
    bits = np.asarray(value, np.float32).view(np.uint32)
    if away:
        rounded = bits + np.uint32(0x1000)
    else:
        rounded = bits + np.uint32(0x0FFF) + ((bits >> np.uint32(13)) & np.uint32(1))
    keep = np.isfinite(value)
    return np.where(keep, rounded & np.uint32(0xFFFFE000), bits)
