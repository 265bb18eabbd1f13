"""Asynchronous copies: of threads, in bulk, of tensors, and the mbarriers that count them."""

import numpy as np
import pytest

from tools.ptx_emulator import Conditions, KernelFault

from .programs import Ran, run

START = ".reg .b32 %t, %m, %r<8>; .reg .b64 %a, %b, %o, %d<8>; .reg .pred %p, %q;"
START += "mov.u32 %t, %tid.x; mul.wide.u32 %o, %t, 4; ld.param.b64 %a, [x]; ld.param.b64 %b, [y];"
START += "add.s64 %b, %b, %o; setp.eq.u32 %p, %t, 0;"
COPY = "add.s64 %d0, %a, %o; mul.lo.u32 %r0, %t, 4; add.s32 %r0, %r0, 1024;"
COPY += "cp.async.ca.shared.global [%r0], [%d0], 4{size}; cp.async.commit_group;"
READ = "ld.shared.b32 %r1, [%r0]; st.global.b32 [%b], %r1;"
LATE, EARLY = Conditions(), Conditions(late_copies=False)


def go(text: str, conditions: Conditions = LATE, threads: int = 32, count: int = 256) -> Ran:
    arrays = {"x": np.arange(1, count + 1, dtype=np.uint32), "y": np.zeros(256, np.uint32)}
    return run(START + text, arrays, threads=threads, conditions=conditions, dynamic_shared=8192)


@pytest.mark.parametrize("conditions", [LATE, EARLY])
def test_a_copy_that_is_waited_for(conditions: Conditions) -> None:
    found = go(COPY.format(size="") + "cp.async.wait_group 0;" + READ, conditions)
    assert found["y"][:32].tolist() == list(range(1, 33))
    assert found.counts.loaded_bytes["x"] == 128


def test_a_copy_that_is_not_waited_for_is_found_late() -> None:
    text = COPY.format(size="") + "cp.async.wait_group 1;" + READ
    with pytest.raises(KernelFault, match="asynchronous copy that was not waited for"):
        go(text)
    go(text, EARLY)  # the reason why both are run


def test_waiting_leaves_the_latest_groups() -> None:
    second = "cp.async.ca.shared.global [%r0+128], [%d0+128], 4; cp.async.commit_group;"
    both = COPY.format(size="") + second
    found = go(both + "cp.async.wait_group 1;" + READ)
    assert found["y"][:32].tolist() == list(range(1, 33))
    with pytest.raises(KernelFault, match="not waited for"):
        go(both + "cp.async.wait_group 1; ld.shared.b32 %r1, [%r0+128]; st.global.b32 [%b], %r1;")
    late = both + "cp.async.wait_all; ld.shared.b32 %r1, [%r0+128]; st.global.b32 [%b], %r1;"
    assert go(late)["y"][:32].tolist() == list(range(33, 65))


def test_what_a_copy_may_still_overwrite() -> None:
    again = "st.shared.b32 [%r0], 7;"
    with pytest.raises(KernelFault, match="not waited for, may still write"):
        go(COPY.format(size="") + again + "cp.async.wait_group 0;")
    with pytest.raises(KernelFault, match="not waited for, may still write"):
        go(COPY.format(size="") + COPY.format(size=""))
    go(COPY.format(size="") + "cp.async.wait_group 0;" + again)


def test_each_thread_waits_for_its_own_copies() -> None:
    """A wait is no barrier: another warp's copies need one as well."""
    other = "xor.b32 %r0, %r0, 128;" + READ
    waited = COPY.format(size="") + "cp.async.wait_group 0;"
    with pytest.raises(KernelFault, match=r"race|not waited for"):
        go(waited + other, threads=64)
    found = go(waited + "bar.sync 0;" + other, threads=64)
    assert found["y"][:64].tolist() == [*range(33, 65), *range(1, 33)]


def test_bytes_beyond_the_source_are_zeros_and_not_read() -> None:
    text = "setp.lt.u32 %q, %t, 3; selp.b32 %r3, 4, 0, %q;" + COPY.format(size=", %r3")
    found = go(text + "cp.async.wait_group 0;" + READ, count=3)
    assert found["y"][:6].tolist() == [1, 2, 3, 0, 0, 0]
    text = "mov.b32 %r3, 2;" + COPY.format(size=", %r3") + "cp.async.wait_group 0;" + READ
    assert go("mov.b32 %r3, 2;" + text, count=32)["y"][0] == 1


def test_a_buffer_that_is_filled_while_it_is_read() -> None:
    filled = COPY.format(size="") + "cp.async.wait_group 0; bar.sync 0; xor.b32 %r4, %r0, 128;"
    again = "ld.shared.b32 %r1, [%r4]; {barrier}" + COPY.format(size="") + "cp.async.wait_group 0;"
    go(filled + again.format(barrier="bar.sync 0;"), threads=64)
    with pytest.raises(KernelFault, match="race"):
        go(filled + again.format(barrier=""), threads=64)


BARRIER = "mov.b32 %m, 1024; @%p mbarrier.init.shared::cta.b64 [%m], 1; bar.sync 0;"
EXPECT = "@%p mbarrier.arrive.expect_tx.shared::cta.b64 _, [%m], 128;"
BULK = "@%p cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
BULK += "[2048], [%a], 128, [%m];"
TRY = "L: mbarrier.try_wait.parity.shared::cta.b64 %q, [%m], 0; @!%q bra L;"
TAKE = "mul.lo.u32 %r0, %t, 4; ld.shared.b32 %r1, [%r0+2048]; st.global.b32 [%b], %r1;"
ALL_CONDITIONS = [LATE, EARLY, Conditions(order=1), Conditions(order=2, late_copies=False)]


@pytest.mark.parametrize("conditions", ALL_CONDITIONS)
def test_an_mbarrier_counts_a_bulk_copy(conditions: Conditions) -> None:
    copy = (EXPECT + BULK).replace("128", "256")
    found = go(BARRIER + copy + TRY + TAKE, conditions, threads=64)
    assert found["y"][:64].tolist() == list(range(1, 65))
    # Waiting costs no instructions, however long it takes.
    assert found.counts.instructions["mbarrier.try_wait.parity.shared::cta.b64"] == 2


def test_a_bulk_copy_that_is_not_waited_for() -> None:
    with pytest.raises(KernelFault, match="asynchronous copy that was not waited for"):
        go(BARRIER + EXPECT + BULK + "bar.sync 0;" + TAKE)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            BARRIER + EXPECT.replace("128", "256") + BULK + TRY,
            "(?s)wait forever.*mbarrier's phase",
        ),
        (BARRIER + BULK + TRY, "(?s)wait forever.*mbarrier's phase"),
        ("mov.b32 %m, 1024;" + EXPECT, "no mbarrier was initialised"),
        (BARRIER + EXPECT + EXPECT, "more arrivals"),
        (BARRIER + EXPECT + BULK.replace("[%a]", "[%a+4]"), "not aligned to 16"),
        (BARRIER + EXPECT + BULK + "@%p mbarrier.inval.shared::cta.b64 [%m];", "in flight"),
    ],
)
def test_wrong_use_of_an_mbarrier(text: str, message: str) -> None:
    with pytest.raises(KernelFault, match=message):
        go(text)


def test_arrivals_order_what_came_before_them() -> None:
    """Warp 0 writes, all of its threads arrive, warp 1 waits and reads."""
    text = "mov.b32 %m, 1024; @%p mbarrier.init.shared::cta.b64 [%m], 32; bar.sync 0;"
    text += "mul.lo.u32 %r0, %t, 4; and.b32 %r0, %r0, 127; setp.ge.u32 %q, %t, 32; @%q bra TAKE;"
    text += "st.shared.b32 [%r0+1152], %t; {arrive} ret;"
    text += "TAKE: mbarrier.try_wait.parity.shared::cta.b64 %q, [%m], 0; @!%q bra TAKE;"
    text += "ld.shared.b32 %r1, [%r0+1152]; st.global.b32 [%b], %r1;"
    arrive = "mbarrier.arrive.shared::cta.b64 %d3, [%m];"
    for order in (None, 1, 2):
        found = go(text.format(arrive=arrive), Conditions(order=order), threads=64)["y"]
        assert found[32:64].tolist() == list(range(32))
    early = text.replace("st.shared.b32 [%r0+1152], %t; {arrive}", "{arrive} st.shared.b32 "
                         "[%r0+1152], %t;")  # fmt: skip
    with pytest.raises(KernelFault, match=r"race|never written"):
        go(early.format(arrive=arrive), threads=64)


def tensor_map(rows: int, columns: int, box: tuple[int, int], swizzle: int, pitch: int) -> str:
    """Builds a map of 32-bit elements at 1280 and publishes it at the buffer z."""
    fields = {
        "global_address": ("b64", "%a"),
        "rank": ("b32", "1"),
        "box_dim:0": ("b32", box[1]),
        "box_dim:1": ("b32", box[0]),
        "global_dim:0": ("b32", columns),
        "global_dim:1": ("b32", rows),
        "global_stride:0": ("b64", pitch),
        "element_stride:0": ("b32", 1),
        "element_stride:1": ("b32", 1),
        "elemtype": ("b32", 2),
        "interleave_layout": ("b32", 0),
        "swizzle_mode": ("b32", swizzle),
        "fill_mode": ("b32", 0),
    }
    lines = ["mov.u64 %d1, 1280; ld.param.b64 %d2, [z];"]
    for key, (kind, value) in fields.items():
        name, _, ordinal = key.partition(":")
        target = f"[%d1], {ordinal + ', ' if ordinal else ''}"
        if isinstance(value, int):
            lines.append(f"mov.{kind} {'%d3' if kind == 'b64' else '%r6'}, {value};")
            value = "%d3" if kind == "b64" else "%r6"
        lines.append(f"@%p tensormap.replace.tile.{name}.shared::cta.b1024.{kind} {target}{value};")
    lines.append(
        "tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned "
        "[%d2], [%d1], 128; bar.sync 0;"
    )
    return "\n".join(lines)


BOX = "@%p cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
BOX += "[2048], [%d2, {{{x}, {y}}}], [%m];"


def tensor_copy(corner: tuple[int, int], swizzle: int, box: tuple[int, int], **changed) -> Ran:
    """Copies a box of a [5, 12] tensor of pitch 16 to shared memory, and that out to y."""
    size = 4 * box[0] * box[1]
    options = {"rows": 5, "columns": 12, "pitch": 64} | changed
    text = tensor_map(box=box, swizzle=swizzle, **options) + BARRIER
    text += EXPECT.replace("128", str(size)) + BOX.format(x=corner[1], y=corner[0]) + TRY
    text += "mul.lo.u32 %r0, %t, 4; ld.shared.b32 %r1, [%r0+2048]; st.global.b32 [%b], %r1;"
    arrays = {
        "x": np.arange(1, 5 * 16 - 3, dtype=np.uint32),
        "y": np.zeros(256, np.uint32),
        "z": np.zeros(128, np.uint8),
    }
    return run(START + text, arrays, threads=size // 4, dynamic_shared=8192)


def test_a_box_of_a_tensor_has_zeros_outside() -> None:
    found = tensor_copy((3, 8), 0, (4, 8))["y"][:32].reshape(4, 8)
    whole = np.zeros((9, 24), int)
    whole[:5, :12] = (np.arange(80).reshape(5, 16) + 1)[:, :12]
    assert (found == whole[3:7, 8:16]).all()
    found = tensor_copy((-1, -4), 0, (4, 8))["y"][:32].reshape(4, 8)
    assert (found[0] == 0).all() and (found[1:, 4:] == whole[:3, :4]).all()


@pytest.mark.parametrize(("mode", "width"), [(1, 32), (2, 64), (3, 128)])
def test_swizzled_boxes(mode: int, width: int) -> None:
    """Byte k of line i of a swizzled box: its 16-byte unit is exchanged by the line's number, as
    the figures of the PTX ISA 5.5.7 show it."""
    columns = width // 4
    found = tensor_copy((0, 0), mode, (4, columns))["y"][: 4 * columns]
    whole = np.zeros((5, 32), int)
    whole[:, :12] = (np.arange(80).reshape(5, 16) + 1)[:, :12]
    for line in range(4):
        for column in range(columns):
            address = line * width + column * 4
            unit = (address >> 4) & (width // 16 - 1)
            moved = unit ^ ((address >> 7) & (width // 16 - 1))
            place = (address & ~((width // 16 - 1) << 4)) | moved << 4
            assert found[place // 4] == whole[line, column]


def test_a_stride_that_is_not_a_multiple_of_16() -> None:
    with pytest.raises(KernelFault, match="multiple of 16"):
        tensor_copy((0, 0), 0, (4, 8), pitch=60)


def test_a_box_that_leaves_the_buffer() -> None:
    with pytest.raises(KernelFault, match="past the end of `x`"):
        tensor_copy((3, 8), 0, (4, 8), rows=6)
