"""Branches, barriers, exchange between lanes, clusters, and races between warps."""

import numpy as np
import pytest

from tools.ptx_emulator import Conditions, Counts, KernelFault

from .programs import Ran, run

START = ".reg .b32 %t, %w, %l, %r<8>; .reg .b64 %a, %o, %d<4>; .reg .pred %p, %q;"
START += "mov.u32 %t, %tid.x; shr.u32 %w, %t, 5; and.b32 %l, %t, 31; mov.u32 %r7, %ctaid.x;"
START += "mov.u32 %r6, %ntid.x; mad.lo.u32 %r6, %r7, %r6, %t;"
START += "mul.wide.u32 %o, %r6, 4; ld.param.b64 %a, [x]; add.s64 %a, %a, %o;"

ORDERS = [None, 1, 2, 3]


def go(text: str, threads: int, order: int | None = None, **options) -> Ran:
    size = threads * options.get("blocks", 1)
    arrays = {"x": np.zeros(size, np.uint32)} | options.pop("arrays", {})
    conditions = Conditions(order=order, races=options.pop("races", True))
    return run(START + text, arrays, threads=threads, conditions=conditions, **options)


@pytest.mark.parametrize("order", ORDERS)
def test_loops_of_different_lengths(order: int | None) -> None:
    text = """
        mov.b32 %r0, 0; mov.b32 %r1, 0;
        LOOP: setp.ge.u32 %p, %r1, %t; @%p bra DONE;
        add.s32 %r0, %r0, %r1; add.s32 %r1, %r1, 1; bra LOOP;
        DONE: st.global.b32 [%a], %r0;"""
    found = go(text, 96, order)["x"]
    assert found.tolist() == [t * (t - 1) // 2 for t in range(96)]


def test_counts_do_not_depend_on_the_order() -> None:
    text = """
        mov.b32 %r1, 0;
        LOOP: setp.ge.u32 %p, %r1, %l; @%p bra DONE; add.s32 %r1, %r1, 1; bra LOOP;
        DONE: bar.sync 0; setp.eq.u32 %p, %w, 1; @%p bra AWAY; add.s32 %r1, %r1, 1;
        AWAY: st.global.b32 [%a], %r1;"""
    counts: list[Counts] = [go(text, 96, order, blocks=3).counts for order in ORDERS]
    assert all(c == counts[0] for c in counts)
    # The last lane of each warp turns 31 times, all with it.
    assert counts[0].instructions["setp.ge.u32"] == 3 * 3 * 32


EXCHANGE = """
    mul.lo.u32 %r0, %t, 4; add.s32 %r0, %r0, 1024; st.shared.b32 [%r0], %t;
    {barrier}
    xor.b32 %r1, %r0, 128; ld.shared.b32 %r2, [%r1]; st.global.b32 [%a], %r2;"""


@pytest.mark.parametrize("order", ORDERS)
def test_a_barrier_orders_warps(order: int | None) -> None:
    text = EXCHANGE.format(barrier="bar.sync 0;")
    found = go(text, 64, order, dynamic_shared=256)["x"]
    assert found.tolist() == [t ^ 32 for t in range(64)]


@pytest.mark.parametrize("order", ORDERS)
def test_a_missing_barrier_is_a_race_in_every_order(order: int | None) -> None:
    text = EXCHANGE.format(barrier="bar.warp.sync -1;")
    with pytest.raises(KernelFault, match=r"race|never written"):
        go(text, 64, order, dynamic_shared=256)


def test_without_the_detector_some_orders_still_show_it() -> None:
    """One of the warps reads what the other has not written yet."""
    text = EXCHANGE.format(barrier="")
    with pytest.raises(KernelFault, match="never written"):
        go(text, 64, 1, races=False, dynamic_shared=256)


def test_a_buffer_that_is_filled_again_too_early() -> None:
    again = "st.shared.b32 [%r0], 7;"
    with pytest.raises(KernelFault, match=r"race: shared memory at 0x4.* was read"):
        go(EXCHANGE.format(barrier="bar.sync 0;") + again, 64, dynamic_shared=256)
    go(EXCHANGE.format(barrier="bar.sync 0;") + "bar.sync 0;" + again, 64, dynamic_shared=256)


def test_two_values_in_one_place() -> None:
    with pytest.raises(KernelFault, match="race"):
        go("st.shared.b32 [1024], %w;", 64, dynamic_shared=64)
    with pytest.raises(KernelFault, match="race: two threads write different values"):
        go("st.shared.b32 [1024], %l;", 32, dynamic_shared=64)
    go("st.shared.b32 [1024], 5;", 64, dynamic_shared=64)  # the same value: no matter who is last


def test_blocks_of_a_launch_are_not_ordered() -> None:
    text = "ld.param.b64 %a, [y]; ld.global.b32 %r0, [%a]; add.s32 %r0, %r0, 1;"
    text += "st.global.b32 [%a], %r0;"
    for in_flight in (1, 4):
        with pytest.raises(KernelFault, match="race: byte 0"):
            arrays = {"y": np.zeros(1, np.uint32)}
            go(text, 1, blocks=2, blocks_in_flight=in_flight, arrays=arrays)
    atomic = "ld.param.b64 %a, [y]; red.global.add.u32 [%a], 1;"
    assert go(atomic, 1, blocks=2, arrays={"y": np.zeros(1, np.uint32)})["y"][0] == 2


def test_warps_of_a_block_race_in_global_memory_too() -> None:
    text = "st.global.b32 [%a], %t; {barrier} ld.param.b64 %a, [x]; xor.b32 %r0, %t, 32;"
    text += "mul.wide.u32 %o, %r0, 4; add.s64 %a, %a, %o; ld.global.b32 %r1, [%a];"
    go(text.format(barrier="bar.sync 0;"), 64)
    with pytest.raises(KernelFault, match="race: byte"):
        go(text.format(barrier=""), 64)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("setp.lt.u32 %p, %t, 40; @%p bar.sync 0;", r"24 lanes|8 threads \(32-39\) for the other"),
        ("setp.lt.u32 %p, %t, 32; @%p bar.sync 0;", r"32 threads \(0-31\) at a barrier"),
        ("bar.sync 0, 96;", r"64 threads \(0-63\) at a barrier"),
        ("setp.lt.u32 %p, %t, 32; @%p ret; bar.sync 0;", r"32 threads \(0-31\) have ended"),
        ("setp.lt.u32 %p, %t, 32; @%p bar.sync 1, 64; @!%p bar.sync 2, 64;", "at a barrier"),
    ],
)
def test_a_barrier_that_not_all_reach(text: str, message: str) -> None:
    with pytest.raises(KernelFault, match=f"(?s)wait forever.*({message})"):
        go(text, 64)


def test_barriers_of_some_warps() -> None:
    """A producer arrives, consumers wait: the barrier counts both."""
    text = """
        setp.ne.u32 %p, %w, 0; @%p bra CONSUME;
        mul.lo.u32 %r0, %l, 4; add.s32 %r0, %r0, 1024; st.shared.b32 [%r0], %t;
        bar.arrive 1, 96; bra DONE;
        CONSUME: bar.sync 1, 96; mul.lo.u32 %r0, %l, 4; add.s32 %r0, %r0, 1024;
        ld.shared.b32 %r1, [%r0]; st.global.b32 [%a], %r1;
        DONE: ret;"""
    for order in ORDERS:
        found = go(text, 96, order, dynamic_shared=128)["x"]
        assert found.tolist() == [0] * 32 + list(range(32)) * 2


def test_lanes_meet_for_a_shuffle_wherever_they_come_from() -> None:
    """Half of the warp takes a longer way, laid out behind: the shuffle waits for it."""
    text = """
        mov.b32 %r0, %t; setp.ge.u32 %p, %l, 16; @%p bra FAR;
        MEET: shfl.sync.bfly.b32 %r1, %r0, 16, 31, -1; st.global.b32 [%a], %r1; bra DONE;
        FAR: add.s32 %r0, %r0, 100; bra MEET;
        DONE: ret;"""
    found = go(text, 32)["x"]
    assert found.tolist() == [t + 16 + 100 for t in range(16)] + list(range(16))


def test_a_shuffle_that_a_named_lane_never_reaches() -> None:
    text = "setp.lt.u32 %p, %l, 31; @%p shfl.sync.idx.b32 %r1, %t, 0, 31, -1; bar.sync 0;"
    with pytest.raises(KernelFault, match=r"(?s)31 threads \(0-30\) for the other lanes"):
        go(text, 32)
    with pytest.raises(KernelFault, match="its own mask leaves out"):
        go("shfl.sync.idx.b32 %r1, %t, 0, 31, 0x7fffffff;", 32)


def test_a_shuffle_from_a_lane_that_takes_no_part() -> None:
    text = "setp.lt.u32 %p, %l, 16; @%p shfl.sync.bfly.b32 %r1, %t, 16, 31, 0xffff;"
    with pytest.raises(KernelFault, match="lane that took no part"):
        go(text + "@%p st.global.b32 [%a], %r1;", 32)


SHUFFLES = {
    "up": (2, 0, lambda i: max(i - 2, i if i < 2 else 0)),
    "down": (3, 31, lambda i: i + 3 if i + 3 < 32 else i),
    "bfly": (5, 31, lambda i: i ^ 5),
    "idx": (7, 31, lambda i: 7),
}


@pytest.mark.parametrize("mode", SHUFFLES)
def test_shuffles(mode: str) -> None:
    by, clamp, source = SHUFFLES[mode]
    text = f"shfl.sync.{mode}.b32 %r1|%p, %t, {by}, {clamp}, -1; st.global.b32 [%a], %r1;"
    assert go(text, 32)["x"].tolist() == [source(i) for i in range(32)]
    quarters = (32 - 8) << 8 | (0 if mode == "up" else 7)
    text = f"shfl.sync.{mode}.b32 %r1, %t, 1, {quarters}, -1; st.global.b32 [%a], %r1;"
    inside = {
        "up": lambda i: i - 1 if i % 8 else i,
        "down": lambda i: i + 1 if i % 8 < 7 else i,
        "bfly": lambda i: i ^ 1,
        "idx": lambda i: i // 8 * 8 + 1,
    }[mode]
    assert go(text, 32)["x"].tolist() == [inside(i) for i in range(32)]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("vote.sync.ballot.b32 %r1, %p, -1;", lambda w: 0b111 if w == 0 else 0),
        ("vote.sync.any.pred %q, %p, -1; selp.b32 %r1, 1, 0, %q;", lambda w: int(w == 0)),
        ("vote.sync.all.pred %q, %p, -1; selp.b32 %r1, 1, 0, %q;", lambda w: 0),
        ("redux.sync.add.s32 %r1, %t, -1;", lambda w: sum(range(32 * w, 32 * w + 32))),
        ("redux.sync.min.u32 %r1, %t, -1;", lambda w: 32 * w),
        ("and.b32 %r0, %t, 1; match.any.sync.b32 %r1, %r0, -1;", None),
        ("activemask.b32 %r1;", lambda w: 0xFFFFFFFF),
    ],
)
def test_votes_and_reductions(text: str, wanted) -> None:
    found = go("setp.lt.u32 %p, %t, 3;" + text + "st.global.b32 [%a], %r1;", 64)["x"]
    if wanted is None:
        assert found.tolist() == [0x55555555, 0xAAAAAAAA] * 32
    else:
        assert found.tolist() == [wanted(0)] * 32 + [wanted(1)] * 32


def test_special_registers() -> None:
    text = "mov.u32 %r0, %laneid; mov.u32 %r1, %warpid; shl.b32 %r1, %r1, 8; or.b32 %r0, %r0, %r1;"
    text += "mov.u32 %r1, %lanemask_lt; popc.b32 %r1, %r1; shl.b32 %r1, %r1, 16;"
    text += "or.b32 %r0, %r0, %r1; st.global.b32 [%a], %r0;"
    found = go(text, 64)["x"]
    assert found.tolist() == [(t % 32) << 16 | (t // 32) << 8 | t % 32 for t in range(64)]


def test_blocks_apart() -> None:
    """Each block takes a ticket and then waits a little: apart, tickets come in other orders."""
    text = """
        ld.param.b64 %d0, [y]; atom.global.add.u32 %r0, [%d0], 1; bar.sync 0;
        st.global.b32 [%a], %r0;"""
    seen = set()
    for order in range(1, 9):
        arrays = {"x": np.zeros(4, np.uint32), "y": np.zeros(1, np.uint32)}
        conditions = Conditions(order=order, blocks_apart=True)
        ran = run(START + text, arrays, threads=1, blocks=4, conditions=conditions)
        assert sorted(ran["x"].tolist()) == [0, 1, 2, 3]
        seen.add(tuple(ran["x"].tolist()))
    assert len(seen) > 3


@pytest.mark.parametrize("order", ORDERS)
def test_threads_that_wait_for_another_block_let_it_run(order: int | None) -> None:
    text = """
        setp.eq.u32 %p, %r7, 1; @%p bra PUBLISH; ld.param.b64 %a, [y];
        WAIT: ld.relaxed.gpu.global.b32 %r0, [%a]; setp.eq.u32 %p, %r0, 0; @%p bra WAIT;
        bra DONE;
        PUBLISH: ld.param.b64 %a, [y]; st.relaxed.gpu.global.b32 [%a], 5;
        DONE: ret;"""
    go(text, 1, order, blocks=2, arrays={"y": np.zeros(1, np.uint32)})


NEIGHBOUR = """
    mul.lo.u32 %r0, %t, 4; add.s32 %r0, %r0, 1024; mul.lo.u32 %r1, %r7, 100; add.s32 %r1, %r1, %t;
    st.shared.b32 [%r0], %r1; {before}
    mov.u32 %r2, %cluster_ctarank; xor.b32 %r2, %r2, 1;
    mapa.shared::cluster.u32 %r3, %r0, %r2; ld.shared::cluster.b32 %r4, [%r3];
    {after} st.global.b32 [%a], %r4;"""
ARRIVE, WAIT = "barrier.cluster.arrive.release;", "barrier.cluster.wait.acquire;"


@pytest.mark.parametrize("order", ORDERS)
def test_blocks_of_a_cluster_read_each_other(order: int | None) -> None:
    text = NEIGHBOUR.format(before=ARRIVE + WAIT, after=ARRIVE + WAIT)
    found = go(text, 64, order, blocks=4, cluster=2, dynamic_shared=256)["x"].reshape(4, 64)
    for block in range(4):
        assert found[block].tolist() == [(block ^ 1) * 100 + t for t in range(64)]


def test_a_cluster_without_its_barriers() -> None:
    with pytest.raises(KernelFault, match=r"race|never written"):
        go(NEIGHBOUR.format(before="bar.sync 0;", after=ARRIVE + WAIT), 64, 1, blocks=2, cluster=2,
           dynamic_shared=256)  # fmt: skip
    with pytest.raises(KernelFault, match="block of the cluster that has ended"):
        late = "setp.eq.u32 %p, %r7, 1; @%p ret;" + NEIGHBOUR.split("{before}")[1].format(after="")
        go("mov.b32 %r0, 1024;" + late, 32, blocks=2, cluster=2, dynamic_shared=256)
    with pytest.raises(KernelFault, match="arrives twice"):
        go(ARRIVE + ARRIVE, 32, blocks=2, cluster=2)
    with pytest.raises(KernelFault, match="not arrived"):
        go(WAIT, 32, blocks=2, cluster=2)


def test_trap() -> None:
    with pytest.raises(KernelFault, match=r"trap reached \[block 0, thread 3\]"):
        go("setp.eq.u32 %p, %t, 3; @%p trap;", 32)
