"""Addresses, alignment, undefined values, atomic operations and what is counted of them."""

import numpy as np
import pytest

from tools.ptx_emulator import Conditions, Geometry, GlobalMemory, KernelFault, launch

from .programs import module, run

START = ".reg .b32 %t, %r<8>; .reg .b64 %a, %b, %o, %d<4>; .reg .pred %p; .reg .f32 %f<4>;"
START += "mov.u32 %t, %tid.x; mul.wide.u32 %o, %t, 4; ld.param.b64 %a, [x]; add.s64 %a, %a, %o;"


def numbers(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.uint32)


def test_a_load_past_the_end_names_the_buffer_and_the_thread() -> None:
    with pytest.raises(KernelFault, match=r"4 bytes past the end of `x` \(124 bytes\).*thread 31"):
        run(START + "ld.global.b32 %r0, [%a];", {"x": numbers(31)})


def test_a_store_before_the_start() -> None:
    with pytest.raises(KernelFault, match="store of 4 bytes, 8 bytes before `x`"):
        run(START + "st.global.b32 [%a+-8], 1;", {"x": numbers(32)})


def test_an_address_far_from_every_buffer() -> None:
    with pytest.raises(KernelFault, match="not near any buffer"):
        run(START + "mul.lo.s64 %a, %a, 5; ld.global.b32 %r0, [%a];", {"x": numbers(32)})


def test_a_vector_must_be_aligned_to_its_size() -> None:
    text = "ld.global.v2.b32 {%r0, %r1}, [%a];"
    with pytest.raises(KernelFault, match="misaligned: load of 8 bytes at byte 4 of `x`"):
        run(START + text, {"x": numbers(64)})


def test_buffers_are_aligned_as_promised_and_no_more() -> None:
    memory = GlobalMemory()
    for alignment in (4, 16, 256):
        buffer = memory.place("x", numbers(8), alignment=alignment)
        assert buffer.pointer % alignment == 0 and buffer.pointer % (2 * alignment) != 0
        assert (buffer.array == numbers(8)).all()


def test_read_only_buffers() -> None:
    memory = GlobalMemory()
    x = memory.place("x", numbers(32), read_only=True)
    kernel = module(["x"], START + "st.global.b32 [%a], %t;")
    with pytest.raises(KernelFault, match="`x`, which is read-only"):
        launch(kernel, memory, [x], Geometry((1, 1, 1), (32, 1, 1)))


def test_a_tensor_of_which_only_the_end_exists() -> None:
    """Rows beyond 2^31 elements: nothing is allocated for those before."""
    memory = GlobalMemory()
    before = 3 << 33
    x = memory.place("x", numbers(32), before=before)
    far = START + f"mov.u64 %d0, {before}; add.s64 %a, %a, %d0; st.global.b32 [%a], 7;"
    launch(module(["x"], far), memory, [x], Geometry((1, 1, 1), (32, 1, 1)))
    assert (x.array == 7).all()
    wrapped = START + f"mov.u64 %d0, {before & 0xFFFFFFFF}; add.s64 %a, %a, %d0;"
    with pytest.raises(KernelFault, match="bytes before `x`"):
        launch(
            module(["x"], wrapped + "st.global.b32 [%a], 7;"),
            memory,
            [x],
            Geometry((1, 1, 1), (32, 1, 1)),
        )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("st.global.b32 [%a], %r0;", "stored to global memory comes from a register"),
        ("add.s32 %r1, %r0, 1; st.global.b32 [%a], %r1;", "comes from a register"),
        ("ld.global.b32 %r0, [%b]; st.global.b32 [%a], %r0;", "global memory that holds nothing"),
        ("cvt.u64.u32 %d0, %r0; add.s64 %a, %a, %d0; ld.global.b32 %r1, [%a];", "an address comes"),
        ("setp.eq.s32 %p, %r0, 0; @%p st.global.b32 [%a], 1;", "the condition comes from"),
        ("ld.shared.b32 %r0, [1024]; st.global.b32 [%a], %r0;", "shared memory that was never"),
        ("and.b32 %r1, %r0, 1; st.global.b32 [%a], %r1;", "comes from a register"),
    ],
)
def test_undefined_values_must_not_decide_or_leave(text: str, message: str) -> None:
    start = START + "ld.param.b64 %b, [y]; add.s64 %b, %b, %o;"
    arrays = {"x": numbers(32), "y": numbers(32)}
    with pytest.raises(KernelFault, match=message):
        run(start + text, arrays, results=["y"], dynamic_shared=64)


@pytest.mark.parametrize(
    "text",
    [
        "selp.b32 %r1, %r0, 5, %p;",  # the other side is chosen
        "and.b32 %r1, %r0, 0;",
        "or.b32 %r1, %r0, -1;",
        "mov.b32 %r1, 3; @%p mov.b32 %r1, %r0;",
        "add.s32 %r2, %r0, 1; mov.b32 %r1, 3;",  # computed, never used
    ],
)
def test_undefined_values_that_do_not_matter(text: str) -> None:
    run(START + "setp.ne.b32 %p, 0, 0;" + text + "st.global.b32 [%a], %r1;", {"x": numbers(32)})


def test_lanes_that_are_written_on_one_way_only() -> None:
    """Half of the warp writes a register: the other half must not use it."""
    text = "setp.lt.u32 %p, %t, 16; @%p mov.b32 %r0, 1;"
    run(START + text + "@%p st.global.b32 [%a], %r0;", {"x": numbers(32)})
    with pytest.raises(KernelFault, match=r"register that was never written \[.*thread 16\]"):
        run(START + text + "st.global.b32 [%a], %r0;", {"x": numbers(32)})


def test_shared_memory_has_bounds() -> None:
    for address in (0, 1024 + 64):
        with pytest.raises(KernelFault, match="outside shared memory"):
            run(START + f"st.shared.b32 [{address}], 1;", {"x": numbers(32)}, dynamic_shared=64)


def test_parts_of_a_word_in_shared_memory() -> None:
    text = "st.shared.b16 [1024], 513; ld.shared.u8 %r0, [1025]; st.global.b32 [%a], %r0;"
    found = run(START + text, {"x": numbers(32)}, threads=1, dynamic_shared=64)
    assert found["x"][0] == 2
    with pytest.raises(KernelFault, match="shared memory that was never"):
        text = "st.shared.b16 [1024], 513; ld.shared.b32 %r0, [1024]; st.global.b32 [%a], %r0;"
        run(START + text, {"x": numbers(32)}, threads=1, dynamic_shared=64)


def test_loads_extend_by_their_type() -> None:
    arrays = {"x": np.array([0xFF80, 0], np.uint32)}
    for kind, wanted in {"s8": -128, "u8": 128, "s16": -128, "u16": 0xFF80}.items():
        text = f"ld.global.{kind} %r0, [%a]; st.global.b32 [%a+4], %r0;"
        assert run(START + text, arrays, threads=1)["x"].view(np.int32)[1] == wanted


@pytest.mark.parametrize("order", [None, 1, 2])
def test_atomic_operations_give_each_thread_its_turn(order: int | None) -> None:
    text = "ld.param.b64 %b, [n]; atom.global.add.u32 %r0, [%b], 2; st.global.b32 [%a], %r0;"
    arrays = {"x": numbers(64), "n": np.array([5], np.uint32)}
    found = run(START + text, arrays, threads=64, conditions=Conditions(order=order))
    assert found["n"][0] == 5 + 128
    assert sorted(found["x"].tolist()) == list(range(5, 5 + 128, 2))
    assert found.counts.atomics["n"] == 64


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("atom.global.max.u32 %r0, [%b], %t;", 31),
        ("atom.global.exch.b32 %r0, [%b], 9;", 9),
        ("atom.global.cas.b32 %r0, [%b], 7, 100;", 100),
        ("atom.global.inc.u32 %r0, [%b], 10;", (7 + 32) % 11),  # 7, ..., 10, 0, ..., 10, 0, ...
        ("red.global.or.b32 [%b], 8;", 15),
        ("red.global.add.f32 [%b], 0f3F800000;", None),
    ],
)
def test_kinds_of_atomic_operations(text: str, wanted: int | None) -> None:
    start = START + "ld.param.b64 %b, [n];"
    found = run(start + text, {"x": numbers(32), "n": np.array([7], np.uint32)})["n"]
    if wanted is None:
        assert found.view(np.float32)[0] == 32.0
    else:
        assert found[0] == wanted


def test_atomic_operations_on_vectors_and_shared_memory() -> None:
    text = "ld.param.b64 %b, [n]; red.global.add.v2.f32 [%b], {0f3F800000, 0f40000000};"
    found = run(START + text, {"x": numbers(32), "n": np.zeros(2, np.float32)})
    assert found["n"].tolist() == [32.0, 64.0]
    text = "setp.eq.u32 %p, %t, 0; @%p st.shared.b32 [1024], 0; bar.sync 0;"
    text += "atom.shared.add.u32 %r0, [1024], 1; bar.sync 0;"
    text += "ld.shared.b32 %r1, [1024]; st.global.b32 [%a], %r1;"
    found = run(START + text, {"x": numbers(64)}, threads=64, dynamic_shared=64)
    assert (found["x"] == 64).all()


def test_generic_addresses_find_their_space() -> None:
    text = "mul.wide.u32 %d0, %t, 4; cvta.shared.u64 %d1, 1024; add.s64 %d1, %d1, %d0;"
    text += "st.b32 [%d1], %t; ld.b32 %r0, [%d1]; add.s32 %r0, %r0, 1; st.b32 [%a], %r0;"
    found = run(START + text, {"x": numbers(32)}, dynamic_shared=128)
    assert (found["x"] == numbers(32) + 1).all()


def test_a_thread_has_memory_of_its_own() -> None:
    text = ".local .align 4 .b8 mine[8]; mov.u64 %d0, mine; cvta.local.u64 %d1, %d0;"
    text += "st.local.b32 [%d0+4], %t; ld.b32 %r0, [%d1+4]; st.global.b32 [%a], %r0;"
    assert (run(START + text, {"x": 0 * numbers(32)})["x"] == numbers(32)).all()
    with pytest.raises(KernelFault, match="outside the thread's own memory"):
        run(START + text.replace("[%d0+4]", "[%d0+8]"), {"x": numbers(32)})


@pytest.mark.parametrize(
    ("stride", "sectors"),
    [(4, 4 + 1), (32, 32), (0, 1)],  # 128 bytes that start amid a sector; one each; all the same
)
def test_sectors(stride: int, sectors: int) -> None:
    text = f"ld.param.b64 %a, [x]; mul.wide.u32 %o, %t, {stride}; add.s64 %a, %a, %o;"
    counts = run(START + text + "ld.global.b32 %r0, [%a];", {"x": numbers(256)}).counts
    assert counts.load_sectors == {"x": sectors}
    assert counts.loaded_bytes == {"x": 128}


@pytest.mark.parametrize(
    ("width", "stride", "needed", "ideal"),
    [
        (4, 4, 1, 1),
        (4, 8, 2, 1),  # every second bank
        (4, 128, 32, 1),  # one bank
        (4, 0, 1, 1),  # one word for all
        (8, 8, 2, 2),  # two halves of the warp
        (16, 16, 4, 4),
        (16, 32, 8, 4),
        (16, 144, 4, 4),  # a padded row of 36 words
    ],
)
def test_bank_conflicts(width: int, stride: int, needed: int, ideal: int) -> None:
    values = ", ".join(["%t"] * (width // 4))
    text = f"mad.lo.u32 %r0, %t, {stride}, 1024; st.shared.v{width // 4}.b32 [%r0], {{{values}}};"
    text = text.replace(".v1", "").replace("{%t};", "%t;") if width == 4 else text
    conditions = Conditions(races=False)  # all write one place in one of the cases
    arrays = {"x": numbers(32)}
    counts = run(START + text, arrays, dynamic_shared=8192, conditions=conditions).counts
    assert (counts.shared_wavefronts, counts.shared_wavefronts_ideal) == (needed, ideal)
