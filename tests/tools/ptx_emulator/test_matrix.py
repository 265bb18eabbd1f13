"""Matrix instructions against the layouts of the PTX ISA, written out element by element."""

import numpy as np
import pytest
import torch

from tools.ptx_emulator import Conditions, KernelFault, Unsupported

from .programs import Ran, run

START = ".reg .b32 %t, %l, %r<80>; .reg .b64 %a, %o, %d<8>; .reg .pred %p;"
START += "mov.u32 %t, %tid.x; and.b32 %l, %t, 31;"
LATE, EARLY = Conditions(), Conditions(late_copies=False)


def words(values: np.ndarray, kind: str) -> np.ndarray:
    """float32 values as packed words of a type, [..., n] to [..., n / 2]; tf32 stay words."""
    if kind == "tf32":
        return np.ascontiguousarray(values, np.float32).view(np.uint32)
    dtype = torch.bfloat16 if kind == "bf16" else torch.float16
    bits = torch.from_numpy(np.ascontiguousarray(values, np.float32)).to(dtype)
    return bits.view(torch.int16).numpy().view(np.uint32)


def small_numbers(seed: int, *shape: int) -> np.ndarray:
    """Exact in every type, and so are their sums of products."""
    return np.random.default_rng(seed).integers(-8, 9, shape).astype(np.float32)


def registers(first: int, count: int) -> str:
    return "{" + ", ".join(f"%r{first + i}" for i in range(count)) + "}"


def load(name: str, first: int, count: int, lane: str = "%l") -> str:
    lines = f"ld.param.b64 %a, [{name}]; mul.wide.u32 %o, {lane}, {4 * count}; add.s64 %a, %a, %o;"
    return lines + "".join(f"ld.global.b32 %r{first + i}, [%a+{4 * i}];" for i in range(count))


def store(name: str, first: int, count: int, lane: str = "%l") -> str:
    lines = f"ld.param.b64 %a, [{name}]; mul.wide.u32 %o, {lane}, {4 * count}; add.s64 %a, %a, %o;"
    return lines + "".join(f"st.global.b32 [%a+{4 * i}], %r{first + i};" for i in range(count))


def a_fragment(matrix: np.ndarray, kind: str) -> np.ndarray:
    """[32, 4] words of a 16 x k matrix (9.7.14.5, figures of matrix A)."""
    per = 1 if kind == "tf32" else 2
    result = np.zeros((32, 4, per), np.float32)
    half = matrix.shape[1] // 2
    for lane in range(32):
        group, place = lane // 4, lane % 4
        for word in range(4):
            row = group + 8 * (word % 2)
            column = place * per + half * (word // 2)
            result[lane, word] = matrix[row, column : column + per]
    return words(result, kind).reshape(32, 4)


def b_fragment(matrix: np.ndarray, kind: str) -> np.ndarray:
    """[32, 2] words of a k x 8 matrix."""
    per = 1 if kind == "tf32" else 2
    result = np.zeros((32, 2, per), np.float32)
    half = matrix.shape[0] // 2
    for lane in range(32):
        for word in range(2):
            row = lane % 4 * per + half * word
            result[lane, word] = matrix[row : row + per, lane // 4]
    return words(result, kind).reshape(32, 2)


def c_fragment(matrix: np.ndarray) -> np.ndarray:
    result = np.zeros((32, 4), np.float32)
    for lane in range(32):
        for word in range(4):
            result[lane, word] = matrix[lane // 4 + 8 * (word // 2), lane % 4 * 2 + word % 2]
    return result


@pytest.mark.parametrize(("kind", "k"), [("bf16", 16), ("f16", 16), ("tf32", 8)])
def test_mma(kind: str, k: int) -> None:
    a, b, c = small_numbers(1, 16, k), small_numbers(2, k, 8), small_numbers(3, 16, 8)
    shape = f"mma.sync.aligned.m16n8k{k}.row.col.f32.{kind}.{kind}.f32"
    text = load("a", 0, 4) + load("b", 4, 2) + load("c", 6, 4)
    text += f"{shape} {registers(6, 4)}, {registers(0, 4)}, {registers(4, 2)}, {registers(6, 4)};"
    arrays = {"a": a_fragment(a, kind), "b": b_fragment(b, kind), "c": c_fragment(c)}
    found = run(START + text + store("c", 6, 4), arrays)
    assert (found["c"] == c_fragment(a @ b + c)).all()
    assert found.counts.mma_flops == 2 * 16 * 8 * k


def test_mma_of_undefined_values_is_undefined() -> None:
    shape = "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"
    text = load("b", 4, 2) + load("c", 6, 4)
    text += f"{shape} {registers(6, 4)}, {registers(0, 4)}, {registers(4, 2)}, {registers(6, 4)};"
    arrays = {"b": np.zeros((32, 2), np.uint32), "c": np.zeros((32, 4), np.float32)}
    with pytest.raises(KernelFault, match="register that was never written"):
        run(START + text + store("c", 6, 4), arrays)


@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix_and_stmatrix(transposed: bool) -> None:
    """Lane i gets elements 2 (i % 4) and one more of row i / 4, and puts them back."""
    halves = np.arange(4 * 64, dtype=np.uint16)
    turn = ".trans" if transposed else ""
    text = "mul.lo.u32 %r0, %l, 16; add.s32 %r0, %r0, 1024;" + load("x", 1, 4)
    text += f"st.shared.v4.b32 [%r0], {registers(1, 4)}; bar.sync 0;"
    text += f"ldmatrix.sync.aligned.m8n8.x4{turn}.shared.b16 {registers(5, 4)}, [%r0];"
    text += store("y", 5, 4)
    text += f"stmatrix.sync.aligned.m8n8.x4{turn}.shared.b16 [%r0+512], {registers(5, 4)};"
    text += f"bar.sync 0; ld.shared.v4.b32 {registers(9, 4)}, [%r0+512];" + store("z", 9, 4)
    arrays = {name: np.zeros((32, 4), np.uint32) for name in "xyz"}
    arrays["x"] = halves.view(np.uint32).reshape(32, 4)
    found = run(START + text, arrays, dynamic_shared=2048)
    matrices = halves.reshape(4, 8, 8)
    matrices = matrices.swapaxes(1, 2) if transposed else matrices
    got = found["y"].view(np.uint16).reshape(32, 4, 2)
    for lane in range(32):
        for matrix in range(4):
            wanted = matrices[matrix, lane // 4, lane % 4 * 2 : lane % 4 * 2 + 2]
            assert (got[lane, matrix] == wanted).all()
    assert (found["z"] == arrays["x"]).all()


def test_ldmatrix_rows_must_be_aligned() -> None:
    text = "mul.lo.u32 %r0, %l, 8; add.s32 %r0, %r0, 1024;"
    text += "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r1, %r2, %r3, %r4}, [%r0];"
    with pytest.raises(KernelFault, match="misaligned: 16 bytes"):
        run(START + text, {"x": np.zeros(1, np.uint32)}, dynamic_shared=2048)


def test_lanes_that_name_no_row_may_hold_any_address() -> None:
    text = "setp.lt.u32 %p, %l, 8; mul.lo.u32 %r0, %l, 16; add.s32 %r0, %r0, 1024;"
    text += "selp.b32 %r0, %r0, 3, %p; st.shared.b32 [%r1], 0;".replace("%r1", "1024")
    text += "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r1}, [%r0];"
    run(START + text, {"x": np.zeros(1, np.uint32)}, dynamic_shared=2048)


WIDTHS = {0: 16, 1: 128, 2: 64, 3: 32}


def operand_bytes(
    values: np.ndarray, kind: str, swizzle: int, *, rows_contiguous: bool
) -> tuple[np.ndarray, int, int]:
    """A [rows, k] operand in shared memory, from an address that is a multiple of 1024.

    Returns its bytes, and the leading and the stride offset of its descriptor (9.7.15.5). Written
    as the canonical layouts are drawn: cores of 8 lines of one swizzle width, one after the other.
    """
    size = 4 if kind == "tf32" else 2
    rows, k = values.shape
    width = WIDTHS[swizzle]
    across = width // size
    bits = words(values, kind).view(f"u{size}").reshape(rows, k)
    bits = bits.T if rows_contiguous else bits
    lines, length = bits.shape  # lines of consecutive elements
    memory = np.zeros(1 << 16, f"u{size}")
    pieces = -(-length // across)
    core = 8 * width
    for line in range(lines):
        for column in range(length):
            # Cores that are neighbours along a line come first.
            number = line // 8 * pieces + column // across
            place = number * core + line % 8 * width + column % across * size
            unit = (place >> 4) & (width // 16 - 1)
            moved = unit ^ ((place >> 7) & (width // 16 - 1))
            place = (place & ~((width // 16 - 1) << 4)) | moved << 4
            memory[place // size] = bits[line, column]
    along, down = core, pieces * core
    if rows_contiguous:
        leading, stride = (down, along) if swizzle == 0 else (along, down)
    else:
        leading, stride = along, down
    return memory, leading, stride


def descriptor(start: int, leading: int, stride: int, swizzle: int) -> int:
    return (start >> 4) | (leading >> 4) << 16 | (stride >> 4) << 32 | swizzle << 62


def stage(name: str, start: int, size: int) -> str:
    """Copies a buffer into shared memory, 16 bytes a thread and turn."""
    lines = []
    for turn in range(-(-size // 2048)):
        lines.append(
            f"ld.param.b64 %a, [{name}]; mul.wide.u32 %o, %t, 16; add.s64 %a, %a, %o;"
            f"ld.global.v4.b32 {{%r0, %r1, %r2, %r3}}, [%a+{2048 * turn}];"
            f"mul.lo.u32 %r4, %t, 16; st.shared.v4.b32 [%r4+{start + 2048 * turn}],"
            "{%r0, %r1, %r2, %r3};"
        )
    return "".join(lines)


def d_fragment(matrix: np.ndarray) -> np.ndarray:
    """[128, n / 2] accumulators of a 64 x n matrix (9.7.15.5, figure of matrix D)."""
    n = matrix.shape[1]
    result = np.zeros((128, n // 2), np.float32)
    for thread in range(128):
        warp, lane = divmod(thread, 32)
        for word in range(n // 2):
            row = 16 * warp + lane // 4 + 8 * (word // 2 % 2)
            result[thread, word] = matrix[row, 8 * (word // 4) + lane % 4 * 2 + word % 2]
    return result


def wgmma(
    kind: str,
    swizzle: int,
    *,
    transposed: tuple[bool, bool] = (False, False),
    from_registers: bool = False,
    finish: str = "wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;",
    conditions: Conditions = LATE,
    n: int = 16,
) -> tuple[Ran, np.ndarray]:
    """D = A B + D of 64 x n; A and B by descriptors, or A from registers."""
    k = 8 if kind == "tf32" else 16
    a, b, d = small_numbers(4, 64, k), small_numbers(5, n, k), small_numbers(6, 64, n)
    a_bytes, *a_steps = operand_bytes(a, kind, swizzle, rows_contiguous=transposed[0])
    b_bytes, *b_steps = operand_bytes(b, kind, swizzle, rows_contiguous=transposed[1])
    arrays = {"a": a_bytes.view(np.uint32)[:2048], "b": b_bytes.view(np.uint32)[:2048]}
    text = stage("a", 1024, 8192) + stage("b", 9216, 8192) + load("d", 16, n // 2, "%t")
    text += f"mov.b64 %d0, {descriptor(1024, *a_steps, swizzle)};"
    text += f"mov.b64 %d1, {descriptor(9216, *b_steps, swizzle)};"
    left, flags = "%d0", [int(t) for t in transposed]
    if from_registers:
        fragments = [a_fragment(a[16 * w : 16 * w + 16], kind) for w in range(4)]
        arrays["f"] = np.concatenate(fragments)
        text += load("f", 60, 4, "%t")
        left, flags = registers(60, 4), flags[1:]
    extra = "" if kind == "tf32" else "".join(f", {t}" for t in flags)
    text += "fence.proxy.async.shared::cta; bar.sync 0; setp.eq.u32 %p, 0, 0;"
    text += "wgmma.fence.sync.aligned;"
    text += f"wgmma.mma_async.sync.aligned.m64n{n}k{k}.f32.{kind}.{kind} {registers(16, n // 2)},"
    text += f"{left}, %d1, %p, 1, 1{extra};" + finish + store("d", 16, n // 2, "%t")
    arrays["d"] = d_fragment(d)
    ran = run(START + text, arrays, threads=128, dynamic_shared=20480, conditions=conditions)
    return ran, d_fragment(a @ b.T + d)


@pytest.mark.parametrize("swizzle", WIDTHS)
@pytest.mark.parametrize("transposed", [(False, False), (True, False), (False, True), (True, True)])
def test_wgmma_layouts(swizzle: int, transposed: tuple[bool, bool]) -> None:
    ran, wanted = wgmma("bf16", swizzle, transposed=transposed, n=16)
    assert (ran["d"] == wanted).all()
    assert ran.counts.mma_flops == 2 * 64 * 16 * 16


@pytest.mark.parametrize("conditions", [LATE, EARLY, Conditions(order=1)])
@pytest.mark.parametrize("kind", ["f16", "tf32"])
def test_wgmma_types_and_registers(kind: str, conditions: Conditions) -> None:
    ran, wanted = wgmma(kind, 1, conditions=conditions, n=64)
    assert (ran["d"] == wanted).all()
    ran, wanted = wgmma(kind, 3, from_registers=True, conditions=conditions, n=8)
    assert (ran["d"] == wanted).all()


@pytest.mark.parametrize(
    "finish",
    [
        "wgmma.commit_group.sync.aligned;",
        "wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 1;",
        "wgmma.wait_group.sync.aligned 0;",  # never committed
    ],
)
@pytest.mark.parametrize("conditions", [LATE, EARLY])
def test_wgmma_that_is_not_waited_for(finish: str, conditions: Conditions) -> None:
    with pytest.raises(KernelFault, match="accumulator of a wgmma that was not waited for"):
        wgmma("bf16", 1, finish=finish, conditions=conditions)


def test_operands_that_are_overwritten_before_the_wait() -> None:
    """Wrong values even where nothing looks for races."""
    spoil = "mul.lo.u32 %r4, %t, 16; st.shared.v4.b32 [%r4+9216], {%t, %t, %t, %t};"
    finish = "wgmma.commit_group.sync.aligned;" + spoil + "wgmma.wait_group.sync.aligned 0;"
    ran, wanted = wgmma("bf16", 1, finish=finish, conditions=Conditions(races=False))
    assert (ran["d"] != wanted).any()
    with pytest.raises(KernelFault, match="race"):
        wgmma("bf16", 1, finish=finish)


def test_products_that_are_not_known() -> None:
    text = "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 "
    text += f"{registers(0, 4)}, {registers(4, 2)}, {registers(6, 1)}, {registers(0, 4)};"
    with pytest.raises(Unsupported, match="this matrix product"):
        run(START + text, {"x": np.zeros(1, np.uint32)})
