"""Floating-point instructions against exact rational arithmetic."""

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch

from tools.ptx_emulator import Conditions, Unsupported

from .programs import elementwise

F32, F64, B32 = ("f32", np.float32), ("f64", np.float64), ("b32", np.uint32)


def floats(seed: int, count: int = 1, size: int = 512) -> list[np.ndarray]:
    """float32 columns of every magnitude, with the special values among them."""
    random = np.random.default_rng(seed)
    special = np.array(
        [0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan, 2.0**-149, -(2.0**-140), 2.0**127],
        np.float32,
    )
    columns = []
    for _ in range(count):
        bits = random.integers(0, 1 << 32, size, dtype=np.uint64).astype(np.uint32)
        near = (random.integers(0x3F000000, 0x41000000, size)).astype(np.uint32)
        column = np.where(random.random(size) < 0.6, near, bits).view(np.float32).copy()
        column[: len(special)] = random.permutation(special)
        columns.append(column)
    return columns


def rounded(value: Fraction, mode: str = "rn") -> np.float32:
    """The float32 nearest to an exact value (even on ties), or next to it in a direction."""
    with np.errstate(over="ignore"):
        near = np.float32(float(value))
        below, above = np.nextafter(near, [np.float32(-np.inf), np.float32(np.inf)])
    candidates = [c for c in (below, near, above) if np.isfinite(c)]
    if mode != "rn":
        down = mode == "rm" or (mode == "rz" and value > 0)
        if down:
            return max(c for c in candidates if Fraction(float(c)) <= value)
        return min(c for c in candidates if Fraction(float(c)) >= value)
    even = {float(c): int(np.float32(c).view(np.uint32)) & 1 for c in candidates}
    return min(candidates, key=lambda c: (abs(Fraction(float(c)) - value), even[float(c)]))


def same(found: np.ndarray, wanted: np.ndarray) -> None:
    """Bit for bit, but any NaN is as good as another."""
    nan = np.isnan(wanted)
    assert (np.isnan(found) == nan).all()
    width = f"u{found.dtype.itemsize}"
    wrong = (found.view(width) != wanted.view(width)) & ~nan
    assert not wrong.any(), (found[wrong][:4], wanted[wrong][:4])


def fma_cases() -> list[np.ndarray]:
    """Random triples, and products that end in a tie with an addend far below that breaks it."""
    a, b, c = floats(5, 3)
    half = np.float32(1 + 2.0**-12)
    a[20:60], b[20:60] = half, half
    c[20:40] = np.float32(2.0) ** -np.arange(40, 60, dtype=np.float32)
    c[40:60] = -c[20:40]
    return [a, b, c]


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
def test_fma_rounds_once(mode: str) -> None:
    a, b, c = fma_cases()
    keep = np.isfinite(a) & np.isfinite(b) & np.isfinite(c)
    with np.errstate(all="ignore"):
        keep &= np.abs(a.astype(np.float64) * b + c) < 1e38
    a, b, c = a[keep], b[keep], c[keep]
    found = elementwise(f"fma.{mode}.f32 %out, %a, %b, %c;", F32, a=F(a), b=F(b), c=F(c))
    for x, y, z, got in zip(a.tolist(), b.tolist(), c.tolist(), found, strict=True):
        exact = Fraction(x) * Fraction(y) + Fraction(z)
        assert got == rounded(exact, mode), (x, y, z)


@pytest.mark.parametrize("mode", ["rz", "rm", "rp"])
@pytest.mark.parametrize("name", ["add", "sub", "mul"])
def test_directed_roundings(name: str, mode: str) -> None:
    a, b = floats(13, 2)
    keep = np.isfinite(a) & np.isfinite(b) & (np.abs(a) < 1e18) & (np.abs(b) < 1e18)
    a, b = a[keep], b[keep]
    found = elementwise(f"{name}.{mode}.f32 %out, %a, %b;", F32, a=F(a), b=F(b))
    for x, y, got in zip(a.tolist(), b.tolist(), found, strict=True):
        one, other = Fraction(x), Fraction(y)
        exact = {"add": one + other, "sub": one - other, "mul": one * other}[name]
        assert got == rounded(exact, mode), (x, y)


def F(values: np.ndarray) -> tuple[str, np.ndarray]:
    return "f32", values


def test_fma_of_doubles_rounds_once() -> None:
    random = np.random.default_rng(6)
    a, b = random.standard_normal((2, 256))
    c = -(a * b) * (1 + random.standard_normal(256) * 2.0 ** -random.integers(10, 60, 256))
    inputs = {name: ("f64", v) for name, v in zip("abc", (a, b, c), strict=True)}
    found = elementwise("fma.rn.f64 %out, %a, %b, %c;", F64, **inputs)
    exact = [
        float(Fraction(x) * Fraction(y) + Fraction(z))
        for x, y, z in zip(a.tolist(), b.tolist(), c.tolist(), strict=True)
    ]
    assert found.tolist() == exact


BINARY: list[tuple[str, Callable]] = [
    ("add.f32", np.add),
    ("sub.f32", np.subtract),
    ("mul.f32", np.multiply),
    ("div.rn.f32", np.divide),
    ("min.f32", np.fmin),
    ("max.f32", np.fmax),
    ("max.NaN.f32", np.maximum),
    ("copysign.f32", lambda a, b: np.copysign(b, a)),
]


@pytest.mark.parametrize(("text", "function"), BINARY, ids=[c[0] for c in BINARY])
def test_of_two(text: str, function: Callable) -> None:
    a, b = floats(7, 2)
    zeros = (a == 0) & (b == 0)  # which zero is the smaller is not looked at
    a, b = a[~zeros], b[~zeros]
    with np.errstate(all="ignore"):
        same(elementwise(f"{text} %out, %a, %b;", F32, a=F(a), b=F(b)), function(a, b))


def test_subnormals_become_zeros_only_with_ftz() -> None:
    a = np.array([2.0**-127, -(2.0**-127), 2.0**-126, 1.0], np.float32)
    half = np.full(4, 0.5, np.float32)
    one = np.ones(4, np.float32)
    kept = elementwise("mul.f32 %out, %a, %b;", F32, a=F(a), b=F(one))
    same(kept, a)
    flushed = elementwise("mul.ftz.f32 %out, %a, %b;", F32, a=F(a), b=F(one))
    same(flushed, np.array([0.0, -0.0, 2.0**-126, 1.0], np.float32))
    result = elementwise("mul.ftz.f32 %out, %a, %b;", F32, a=F(a), b=F(half))
    same(result, np.array([0.0, -0.0, 0.0, 0.5], np.float32))


APPROXIMATE: list[tuple[str, Callable, float, float]] = [
    ("ex2.approx.f32", np.exp2, 2.0**-22, 0.0),
    ("ex2.approx.ftz.f32", np.exp2, 2.0**-22, 0.0),
    ("lg2.approx.f32", np.log2, 2.0**-22, 2.0**-22),
    ("rcp.approx.f32", lambda a: 1 / a, 2.0**-23, 0.0),
    ("rsqrt.approx.f32", lambda a: 1 / np.sqrt(a), 2.0**-22.9, 0.0),
    ("sqrt.approx.f32", np.sqrt, 2.0**-23, 0.0),
    ("tanh.approx.f32", np.tanh, 2.0**-11, 0.0),
]


@pytest.mark.parametrize(("text", "function", "relative", "absolute"), APPROXIMATE)
def test_approximations_are_exact_or_as_wrong_as_allowed(
    text: str, function: Callable, relative: float, absolute: float
) -> None:
    a = np.abs(floats(8)[0])
    a = a[np.isfinite(a) & (a > 2.0**-100) & (a < 80)]
    exact = function(a.astype(np.float64))
    plain = elementwise(f"{text} %out, %a;", F32, a=F(a))
    same(plain, exact.astype(np.float32))
    wrong = elementwise(f"{text} %out, %a;", F32, Conditions(approximate=1), a=F(a))
    again = elementwise(f"{text} %out, %a;", F32, Conditions(approximate=1), a=F(a))
    other = elementwise(f"{text} %out, %a;", F32, Conditions(approximate=2), a=F(a))
    same(wrong, again)
    assert (wrong != other).any()
    error = np.abs(wrong - exact)
    allowed = np.maximum(relative * np.abs(exact), absolute)
    rounding = 2.0**-24 * np.abs(exact)
    assert (error <= allowed + rounding).all()
    assert (error > allowed / 2).mean() > 0.5


def test_division_by_huge_numbers_when_approximate() -> None:
    a = np.array([1.0, -1.0, math.inf, 1.0], np.float32)
    b = np.array([2.0**127, 2.0**127, 2.0**127, 3.0], np.float32)
    found = elementwise("div.approx.f32 %out, %a, %b;", F32, a=F(a), b=F(b))
    same(found, np.array([0.0, -0.0, math.nan, 1 / 3], np.float32))


def test_comparisons_with_nan() -> None:
    a, b = floats(9, 2)
    nan = np.isnan(a) | np.isnan(b)
    for name, wanted in {
        "lt": a < b,
        "ltu": (a < b) | nan,
        "ne": (a != b) & ~nan,
        "neu": (a != b) | nan,
        "equ": (a == b) | nan,
        "nan": nan,
        "num": ~nan,
    }.items():
        found = elementwise(
            f".reg .pred %p; setp.{name}.f32 %p, %a, %b; selp.b32 %out, 1, 0, %p;",
            *[B32],
            **{"a": F(a), "b": F(b)},
        )
        assert found.tolist() == wanted.astype(int).tolist(), name


def torch_halves(values: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    return torch.from_numpy(values).to(dtype).view(torch.int16).numpy().view(np.uint16)


@pytest.mark.parametrize(("kind", "dtype"), [("bf16", torch.bfloat16), ("f16", torch.float16)])
def test_conversions_to_halves_and_back(kind: str, dtype: torch.dtype) -> None:
    (a,) = floats(10)
    a[100:110] = np.float32(65519), 65520, 1e-7, 6e-8, 2.98e-8, 1.00390625, 1.01171875, 0, 1, 3e38
    wanted = torch_halves(a, dtype)
    nan = np.isnan(a)
    found = elementwise(f"cvt.rn.{kind}.f32 %out, %a;", ("b16", np.uint16), a=F(a))
    assert (found[~nan] == wanted[~nan]).all()
    back = elementwise(f"cvt.f32.{kind} %out, %a;", F32, a=("b16", found))
    same(back, torch.from_numpy(wanted.view(np.int16)).view(dtype).float().numpy())
    pairs = elementwise(f"cvt.rn.{kind}x2.f32 %out, %a, %b;", B32, a=F(a), b=F(a[::-1].copy()))
    both = ~nan & ~nan[::-1]
    expected = wanted.astype(np.uint32) << 16 | wanted[::-1]
    assert (pairs[both] == expected[both]).all()


def test_conversions_to_integers_keep_to_the_range() -> None:
    a = np.array([2.5, -2.5, 3.5, 1e20, -1e20, math.nan, math.inf, -0.7, 0.5], np.float32)
    for mode, wanted in {
        "rni": [2, -2, 4, 2147483647, -2147483648, 0, 2147483647, -1, 0],
        "rzi": [2, -2, 3, 2147483647, -2147483648, 0, 2147483647, 0, 0],
        "rmi": [2, -3, 3, 2147483647, -2147483648, 0, 2147483647, -1, 0],
    }.items():
        found = elementwise(f"cvt.{mode}.s32.f32 %out, %a;", ("s32", np.int32), a=F(a))
        assert found.tolist() == wanted
    unsigned = elementwise("cvt.rzi.u64.f32 %out, %a;", ("u64", np.uint64), a=F(a))
    assert unsigned.tolist() == [2, 0, 3, 2**64 - 1, 0, 0, 2**64 - 1, 0, 0]


def test_conversions_from_integers_round() -> None:
    a = np.array([2**24 + 1, -(2**31), 2**31 - 1, 33554435], np.int32)
    found = elementwise("cvt.rn.f32.s32 %out, %a;", F32, a=("s32", a))
    assert found.tolist() == [float(rounded(Fraction(int(v)))) for v in a]


def test_rounding_within_floats_and_saturation() -> None:
    a = np.array([2.5, -1.5, 0.4, 7.0, math.nan, -3.0], np.float32)
    whole = elementwise("cvt.rni.f32.f32 %out, %a;", F32, a=F(a))
    same(whole, np.rint(a))
    inside = elementwise("cvt.sat.f32.f32 %out, %a;", F32, a=F(a))
    same(inside, np.array([1, 0, 0.4, 1, 0, 0], np.float32))


@pytest.mark.parametrize("kind", ["bf16", "f16"])
def test_arithmetic_of_halves_rounds_once(kind: str) -> None:
    dtype = torch.bfloat16 if kind == "bf16" else torch.float16
    random = np.random.default_rng(11)
    a, b, c = (torch_halves(random.standard_normal(256).astype("f4"), dtype) for _ in range(3))
    halves = {n: ("b16", v) for n, v in zip("abc", (a, b, c), strict=True)}
    found = elementwise(f"fma.rn.{kind} %out, %a, %b, %c;", ("b16", np.uint16), **halves)
    x, y, z = (torch.from_numpy(v.view(np.int16)).view(dtype).double() for v in (a, b, c))
    # Exact in double but for sums of very different sizes; none of these comes near a tie.
    assert (found == torch_halves((x * y + z).numpy(), dtype)).all()
    pairs = {n: ("b32", v.view(np.uint32)) for n, v in zip("ab", (a, b), strict=True)}
    both = elementwise(f"max.{kind}x2 %out, %a, %b;", B32, **pairs)
    assert (both.view(np.uint16) == torch_halves(torch.maximum(x, y).numpy(), dtype)).all()


def test_tf32_keeps_ten_bits() -> None:
    (a,) = floats(12)
    a = a[np.isfinite(a) & (np.abs(a) > 1e-30) & (np.abs(a) < 1e30)]
    found = elementwise("cvt.rna.tf32.f32 %out, %a;", B32, a=F(a)).view(np.float32)
    assert (found.view(np.uint32) & 0x1FFF == 0).all()
    assert (np.abs(found - a) <= 2.0**-11 * np.abs(a)).all()


@pytest.mark.parametrize("text", ["add.sat.f32 %out, %a, %a", "add.ftz.f16x2 %out, %a, %a"])
def test_roundings_that_are_not_known(text: str) -> None:
    with pytest.raises(Unsupported):
        elementwise(f"{text};", F32, a=F(np.ones(4, np.float32)))
