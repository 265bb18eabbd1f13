"""Integer, logic and shift instructions against Python's unbounded integers."""

from collections.abc import Callable

import numpy as np
import pytest

from tools.ptx_emulator import Unsupported

from .programs import elementwise

EDGES = [0, 1, 2, 7, 31, 32, 33, 63, 64, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF]
EDGES += [
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFE,
    0xFFFFFFFF,
    0x7FFFFFFFFFFFFFFF,
    1 << 63,
    (1 << 64) - 1,
]


def operands(kind: str, count: int) -> list[np.ndarray]:
    """Columns of all pairs of edge cases, and of random words."""
    bits = int(kind[1:])
    random = np.random.default_rng(1)
    dtype = np.dtype(f"{'i' if kind[0] == 's' else 'u'}{bits // 8}")
    edges = np.array([e & ((1 << bits) - 1) for e in EDGES], np.uint64).astype(f"u{bits // 8}")
    grid = np.stack(np.meshgrid(edges, edges), -1).reshape(-1, 2)
    size = 512 - len(grid) % 512
    columns = []
    for column in range(count):
        drawn = random.integers(0, 1 << 62, size, dtype=np.int64).astype(f"u{bits // 8}")
        edge = grid[:, column] if column < 2 else random.choice(edges, len(grid))
        columns.append(np.concatenate([edge, drawn]).view(dtype))
    return columns


def signed(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def bfe(value: int, start: int, length: int, bits: int, sign: bool) -> int:
    """The definition in the PTX ISA, bit by bit."""
    start, length, top = start & 255, length & 255, bits - 1
    fill = 0 if not sign or length == 0 else value >> min(start + length - 1, top) & 1
    return sum(
        (value >> (start + i) & 1 if i < length and start + i <= top else fill) << i
        for i in range(bits)
    )


def bfi(field: int, base: int, start: int, length: int, bits: int) -> int:
    start, length = start & 255, length & 255
    for i in range(length):
        if start + i < bits:
            base = base & ~(1 << (start + i)) | (field >> i & 1) << (start + i)
    return base


def prmt(a: int, b: int, selector: int) -> int:
    source = [(b << 32 | a) >> 8 * i & 255 for i in range(8)]
    result = 0
    for place in range(4):
        choice = selector >> 4 * place & 15
        octet = source[choice & 7]
        result |= (255 * (octet >> 7) if choice & 8 else octet) << 8 * place
    return result


def quotient(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def funnel(pair: int, by: int, *, left: bool) -> int:
    return pair << by >> 32 if left else pair >> by


Case = tuple[str, str, str, Callable[..., int]]
BINARY: list[Case] = [
    ("add.s32", "s32", "s32", lambda a, b: a + b),
    ("sub.u64", "u64", "u64", lambda a, b: a - b),
    ("mul.lo.s32", "s32", "s32", lambda a, b: a * b),
    ("mul.hi.s32", "s32", "s32", lambda a, b: a * b >> 32),
    ("mul.hi.u32", "u32", "u32", lambda a, b: a * b >> 32),
    ("mul.hi.s64", "s64", "s64", lambda a, b: a * b >> 64),
    ("mul.hi.u64", "u64", "u64", lambda a, b: a * b >> 64),
    ("mul.wide.u16", "u16", "u32", lambda a, b: a * b),
    ("mul.wide.s32", "s32", "s64", lambda a, b: a * b),
    ("mul.wide.u32", "u32", "u64", lambda a, b: a * b),
    ("min.s32", "s32", "s32", min),
    ("max.u64", "u64", "u64", max),
    ("and.b32", "u32", "u32", lambda a, b: a & b),
    ("or.b64", "u64", "u64", lambda a, b: a | b),
    ("xor.b16", "u16", "u16", lambda a, b: a ^ b),
]


def check(
    text: str, kind: str, out: str, function: Callable[..., int], columns: list[np.ndarray]
) -> None:
    names = "abcd"[: len(columns)]
    dtype = np.dtype(f"{'i' if out[0] == 's' else 'u'}{int(out[1:]) // 8}")
    registers = ", ".join(f"%{n}" for n in names)
    found = elementwise(
        f"{text} %out, {registers};",
        (out, dtype),
        **{n: (kind, column) for n, column in zip(names, columns, strict=True)},
    )
    bits = int(out[1:])
    rows = zip(*(column.tolist() for column in columns), strict=True)
    wanted = [function(*row) & ((1 << bits) - 1) for row in rows]
    assert found.view(f"u{bits // 8}").tolist() == wanted


@pytest.mark.parametrize(("text", "kind", "out", "function"), BINARY, ids=[c[0] for c in BINARY])
def test_of_two(text: str, kind: str, out: str, function: Callable[..., int]) -> None:
    check(text, kind, out, function, operands(kind, 2))


UNARY: list[Case] = [
    ("neg.s32", "s32", "s32", lambda a: -a),
    ("abs.s64", "s64", "s64", abs),
    ("not.b32", "u32", "u32", lambda a: ~a),
    ("popc.b64", "u64", "u32", lambda a: a.bit_count()),
    ("clz.b32", "u32", "u32", lambda a: 32 - a.bit_length()),
    ("bfind.u32", "u32", "u32", lambda a: a.bit_length() - 1),
    ("bfind.shiftamt.u32", "u32", "u32", lambda a: 32 - a.bit_length() if a else -1),
    ("bfind.s32", "s32", "u32", lambda a: (~a if a < 0 else a).bit_length() - 1),
    ("brev.b32", "u32", "u32", lambda a: int(f"{a:032b}"[::-1], 2)),
    ("brev.b64", "u64", "u64", lambda a: int(f"{a:064b}"[::-1], 2)),
    ("cvt.s64.s32", "s32", "s64", lambda a: a),
    ("cvt.u64.u32", "u32", "u64", lambda a: a),
    ("cvt.u16.u32", "u32", "u16", lambda a: a),
    ("cvt.s32.s8", "s32", "s32", lambda a: signed(a, 8)),
]


@pytest.mark.parametrize(("text", "kind", "out", "function"), UNARY, ids=[c[0] for c in UNARY])
def test_of_one(text: str, kind: str, out: str, function: Callable[..., int]) -> None:
    check(text, kind, out, function, operands(kind, 1))


@pytest.mark.parametrize("kind", ["s32", "u32", "s64"])
def test_division_rounds_to_zero_and_the_remainder_fits(kind: str) -> None:
    a, b = operands(kind, 2)
    least = np.iinfo(a.dtype).min
    allowed = b != 0
    if kind[0] == "s":
        allowed &= (a != least) | (b != -1)
    a, b = a[allowed], b[allowed]
    check(f"div.{kind}", kind, kind, quotient, [a, b])
    check(f"rem.{kind}", kind, kind, lambda x, y: x - quotient(x, y) * y, [a, b])


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
def test_shifts_beyond_the_width(kind: str) -> None:
    bits = int(kind[1:])
    (value,) = operands(kind, 1)
    amount = np.random.default_rng(2).integers(0, 2 * bits, value.size).astype(np.uint32)
    inputs = {"a": (kind, value), "n": ("u32", amount)}
    for name, move in (("shl.b", lambda v, n: v << n), (f"shr.{kind[0]}", lambda v, n: v >> n)):
        found = elementwise(f"{name}{bits} %out, %a, %n;", (kind, value.dtype), **inputs)
        pairs = zip(value.tolist(), amount.tolist(), strict=True)
        wanted = [move(v, n) & ((1 << bits) - 1) for v, n in pairs]
        assert found.view(f"u{bits // 8}").tolist() == wanted


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
def test_bit_fields(kind: str) -> None:
    bits = int(kind[1:])
    value, base = operands(kind, 2)
    random = np.random.default_rng(3)
    start, length = random.integers(0, bits + 8, (2, value.size)).astype(np.uint32)
    places = {"s": ("u32", start), "n": ("u32", length)}
    mask = (1 << bits) - 1
    found = elementwise(
        f"bfe.{kind} %out, %a, %s, %n;", (kind, value.dtype), a=(kind, value), **places
    )
    rows = zip(value.tolist(), start.tolist(), length.tolist(), strict=True)
    wanted = [bfe(v & mask, s, n, bits, kind[0] == "s") for v, s, n in rows]
    assert found.view(f"u{bits // 8}").tolist() == wanted
    found = elementwise(
        f"bfi.b{bits} %out, %a, %b, %s, %n;",
        (kind, value.dtype),
        **{"a": (kind, value), "b": (kind, base), **places},
    )
    rows4 = zip(value.tolist(), base.tolist(), start.tolist(), length.tolist(), strict=True)
    wanted = [bfi(v & mask, w & mask, s, n, bits) for v, w, s, n in rows4]
    assert found.view(f"u{bits // 8}").tolist() == wanted


def test_bytes_words_and_tables() -> None:
    a, b, c = operands("u32", 3)
    check("prmt.b32", "u32", "u32", prmt, [a, b, c])
    check("mad.lo.s32", "s32", "s32", lambda x, y, z: x * y + z, [v.view("i4") for v in (a, b, c)])
    for mode, limit in (("wrap", lambda n: n & 31), ("clamp", lambda n: min(n, 32))):
        for side in "lr":
            check(
                f"shf.{side}.{mode}.b32",
                "u32",
                "u32",
                lambda x, y, n, s=side, f=limit: funnel(y << 32 | x, f(n), left=s == "l"),
                [a, b, c],
            )
    for table in (0x00, 0x96, 0xE8, 0xCA, 0x1B):
        found = elementwise(
            f"lop3.b32 %out, %a, %b, %c, {table:#x};",
            ("u32", np.uint32),
            **{n: ("u32", v) for n, v in zip("abc", (a, b, c), strict=True)},
        )
        rows = np.stack([a, b, c]).astype(object)
        wanted = [
            sum((table >> ((x >> i & 1) * 4 + (y >> i & 1) * 2 + (z >> i & 1)) & 1) << i
                for i in range(32))
            for x, y, z in rows.T
        ]  # fmt: skip
        assert found.tolist() == wanted


def test_packing_puts_the_first_lowest() -> None:
    low, high = operands("u16", 2)
    packed = elementwise(
        "mov.b32 %out, {%a, %b};", ("u32", np.uint32), a=("u16", low), b=("u16", high)
    )
    assert packed.tolist() == (high.astype(np.uint32) << 16 | low).tolist()
    upper = elementwise(
        ".reg .b16 %l; mov.b32 {%l, %out}, %a;", ("u16", np.uint16), a=("u32", packed)
    )
    assert upper.tolist() == high.tolist()


def test_comparisons_choose() -> None:
    a, b = operands("s32", 2)
    found = elementwise(
        ".reg .pred %p, %q, %r; setp.lt.s32 %p|%q, %a, %b; setp.gt.and.s32 %r, %a, 0, %q;"
        "selp.s32 %out, 1, 2, %p; @%r mov.b32 %out, 3; @!%q mov.b32 %out, 4;",
        *[("s32", np.int32)],
        **{"a": ("s32", a), "b": ("s32", b)},
    )
    wanted = np.where(a < b, 4, np.where(a > 0, 3, 2))
    assert found.tolist() == wanted.tolist()
    unsigned = elementwise(
        ".reg .pred %p; setp.lo.u32 %p, %a, %b; selp.s32 %out, 1, 0, %p;",
        *[("s32", np.int32)],
        **{"a": ("s32", a), "b": ("s32", b)},
    )
    assert unsigned.tolist() == (a.view(np.uint32) < b.view(np.uint32)).astype(int).tolist()


@pytest.mark.parametrize("text", ["add.sat.s32 %out, %a, %a", "frobnicate.s32 %out, %a"])
def test_what_is_not_known_is_named_with_its_line(text: str) -> None:
    with pytest.raises(Unsupported, match=rf"PTX line \d+: {text[:9]}"):
        elementwise(f"{text};", ("s32", np.int32), a=("s32", np.arange(4, dtype=np.int32)))
