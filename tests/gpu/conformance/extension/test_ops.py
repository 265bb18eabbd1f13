"""The CUDA kernels as torch ops, from the Python call to the last store.

They run on the CPU, emulated, and the same tests run on a GPU where there is one (``-m gpu``). What
each kernel computes is tested in ../cuda_on_cpu. Here every argument must reach its place, every
result must come back in its own, and the schemas must say what is written.
"""

import pytest
import torch

from wavalign_fast.losses import MixingGate, group_advantages
from wavalign_fast.ops import cuda
from wavalign_fast.ops.chunked import row_ops
from wavalign_fast.ops.chunked.interface import RowChunk, RowGrads
from wavalign_fast.ops.chunked.row_ops import operand_view
from wavalign_fast.ops.token_math import TokenTable

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
ROWS = 6
IGNORED, BAD = 2, 4
STREAM = 0x57


@pytest.fixture(params=[80, 90, pytest.param("gpu", marks=pytest.mark.gpu)])
def place(request, monkeypatch):
    """The tensors' device: the CPU pretending to be sm_80 or sm_90, or a GPU."""
    if request.param == "gpu":
        reason = cuda.status()
        if reason is not None:
            pytest.skip(reason)
        yield torch.device("cuda")
        return
    # Only here: the first use compiles it, which takes minutes of a GPU's time.
    emulated_library = request.getfixturevalue("emulated_library")
    monkeypatch.setattr(cuda, "OPS", emulated_library.ops)
    emulated_library.pretend(arch=request.param)
    yield torch.device("cpu")
    emulated_library.pretend()


def chunk(place, vocab: int, dtype: torch.dtype = torch.float32, *, bias: bool = True):
    """Logits [6, vocab] with garbage between the rows, ids of which one is dead and one bad."""
    g = torch.Generator().manual_seed(vocab)
    pitch = (vocab + 127) // 64 * 64
    wide = torch.full((ROWS, pitch), torch.nan)
    wide[:, :vocab] = 4 * torch.randn(ROWS, vocab, generator=g)
    ids = torch.randint(0, vocab, (ROWS,), generator=g)
    ids[IGNORED], ids[BAD] = -100, vocab
    banned = torch.randn(vocab, generator=g)
    return wide.to(place, dtype)[:, :vocab], ids.to(place), banned.to(place) if bias else None


def columns(place, seed: int) -> list[torch.Tensor]:
    """Six different columns [6] of positive numbers."""
    g = torch.Generator().manual_seed(seed)
    return list((0.1 + torch.rand(6, ROWS, generator=g)).to(place))


def table(place, **absent: None) -> TokenTable:
    coefficient, advantage, kl, anchor, old, ref = columns(place, 1)
    full = TokenTable(coefficient, advantage - 0.5, kl, anchor, -3 * old, -3 * ref)
    return full._replace(**absent)


def assert_rows(found, wanted) -> None:
    for name, a, b in zip(type(wanted)._fields, found, wanted, strict=True):
        torch.testing.assert_close(
            a, b, atol=1e-5, rtol=1e-5, equal_nan=True, check_dtype=False, msg=name
        )


OPERANDS = [
    ("fp32", "bf16"),
    ("fp32", "fp16"),
    ("fp32", "fp32"),
    ("bf16", "bf16"),
    ("bf16", "fp16"),
]


@pytest.mark.parametrize("absent", [{}, {"old_logp": None, "ref_logp": None}])
@pytest.mark.parametrize(("dtype", "out"), OPERANDS)
def test_hybrid_rows(place, dtype, out, absent):
    logits, ids, bias = chunk(place, 147, DTYPES[dtype], bias=not absent)
    clip = None if absent else (0.8, 1.2)
    wanted, g, dlogits = row_ops.hybrid_rows_(
        RowChunk(logits.double(), ids, bias, 0.7, -100),
        table(place, **absent),
        clip=clip,
        out_dtype=torch.float64,
    )
    stats, found_g, found = cuda.hybrid_rows_(
        RowChunk(logits, ids, bias, 0.7, -100),
        table(place, **absent),
        clip=clip,
        out_dtype=DTYPES[out],
    )
    assert_rows(stats, wanted)
    torch.testing.assert_close(found_g.double(), g, atol=1e-5, rtol=1e-5, equal_nan=True)
    assert found.dtype == DTYPES[out] and found.data_ptr() == logits.data_ptr()
    tolerance = 1e-5 if out == "fp32" else 4e-3
    torch.testing.assert_close(found.double(), dlogits, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("given", ["logp", "entropy", "lse", "logp entropy lse"])
def test_row_stats_and_gradient(place, given):
    logits, ids, bias = chunk(place, 200)
    exact = RowChunk(logits.double(), ids, bias, 1.3, -100)
    wanted = row_ops.row_stats(exact)
    narrow = RowChunk(logits, ids, bias, 1.3, -100)
    stats = cuda.row_stats(narrow)
    assert_rows(stats, wanted)
    names = ("logp", "entropy", "lse")
    each = zip(names, columns(place, 2)[:3], strict=True)
    grads = RowGrads(**{name: c - 0.4 if name in given else None for name, c in each})
    dlogits = row_ops.row_gradient_(exact, wanted, grads, out_dtype=torch.float64)
    found = cuda.row_gradient_(narrow, stats, grads, out_dtype=torch.float32)
    torch.testing.assert_close(found.double(), dlogits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("std", ["population", "sample"])
def test_group_statistics_and_mix(place, std):
    rewards = torch.tensor([[1.0, 2.0, 5.0], [4.0, torch.nan, 3.0], [torch.nan] * 3], device=place)
    gate = MixingGate(0.7, ema=0.6, slope=2.0, threshold=2.5, variance_scale=1.5)
    advantages, sums = cuda.group_statistics(
        rewards,
        eps=0.01,
        sample_std=std == "sample",
        lambda_max=gate.lambda_max,
        slope=gate.slope,
        threshold=gate.threshold,
        variance_scale=gate.variance_scale,
    )
    # On the CPU, which has no such kernel: on a GPU the functions would call the same one.
    rewards = rewards.cpu()
    torch.testing.assert_close(advantages.cpu(), group_advantages(rewards, std=std, eps=0.01))
    previous, known = torch.zeros(1, device=place), torch.zeros(1, dtype=torch.bool, device=place)
    for _ in range(2):
        rl_weight, parts = gate.step(rewards)
        found, found_parts = cuda.mix(
            sums, previous, known, lambda_max=gate.lambda_max, ema=gate.ema
        )
        torch.testing.assert_close(found.cpu(), rl_weight.reshape(1))
        torch.testing.assert_close(found_parts.cpu(), torch.stack(list(parts.values())[:5]))
        # The gate moves on: twice this λ, so that the previous step shows in the next one.
        gate.value = 0.5 * rl_weight
        previous, known = gate.value.reshape(1).to(place), ~known


@pytest.mark.parametrize("capacity", [0, 3, 700])
def test_compact_rows(place, capacity):
    live = (torch.rand(1000, generator=torch.Generator().manual_seed(0)) < 0.4).to(place)
    there = live.nonzero().flatten()
    for flags in (live, live.to(torch.uint8)):
        index, count = cuda.compact_rows(flags, capacity=capacity)
        filled = torch.nn.functional.pad(there, (0, max(0, capacity - len(there))), value=-1)
        assert torch.equal(index, filled[:capacity]) and count.tolist() == [len(there)]


@pytest.mark.parametrize("width", [1, 24, 37])
def test_gather_and_scatter_rows(place, width):
    source = torch.randn(9, width, device=place)
    index = torch.tensor([7, -1, 0, 3], device=place)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.int8):
        rows = cuda.gather_rows(source.to(dtype), index)
        wanted = source.to(dtype)[index.clamp(min=0)] * (index >= 0).unsqueeze(1).to(dtype)
        assert rows.dtype == dtype and torch.equal(rows, wanted)
    rows = torch.randn(4, width, device=place)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        target = torch.full((9, width), 5.0, dtype=dtype, device=place)
        wanted = target.clone()
        wanted[index[index >= 0]] = rows[index >= 0].to(dtype)
        assert cuda.scatter_rows_(rows, index, target) is target
        assert torch.equal(target, wanted)


@pytest.mark.parametrize("size", [0, 1, 9, 5000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_scale(place, dtype, size):
    """Times a scalar in the loss's type, in memory that starts at any element."""
    for factor in (1.0, 0.3, -torch.inf, torch.nan):
        for scalar in (torch.float32, torch.float64):
            gradient = torch.randn(size + 3, device=place).to(DTYPES[dtype])[3:]
            by = torch.tensor(factor, dtype=scalar, device=place)
            wanted = row_ops.scale_(gradient.clone(), by.float())
            assert cuda.scale_(gradient, by) is gradient
            torch.testing.assert_close(gradient, wanted, rtol=0, atol=0, equal_nan=True)


def calls(place: torch.device) -> dict[str, tuple]:
    logits, ids, bias = chunk(place, 64)
    logits = logits.contiguous()  # as the check copies it
    ids = torch.where(ids == 64, 0, ids)  # no NaN, which is unequal to itself
    stats = row_ops.row_stats(RowChunk(logits, ids, bias, scale=1.0, ignore_index=-100))
    terms = (*table(place), 1.0, -100)
    reals = torch.rand(3, 4, device=place)
    index = torch.tensor([2, -1], device=place)
    return {
        "row_stats": (logits, ids, bias, 1.0, -100),
        "row_gradient_": (
            logits,
            ids,
            bias,
            *stats,
            *columns(place, 2)[:3],
            1.0,
            -100,
            torch.bfloat16,
        ),
        "hybrid_rows_": (logits, ids, None, *terms, 0.8, 1.2, torch.float16),
        "group_statistics": (reals, 1e-4, False, 0.8, 5.0, 3.0, 4.0),
        "mix": (reals.flatten()[:6], reals[0, :1], reals[0, :1] > 0, 0.8, 0.9),
        "compact_rows": (reals.flatten() < 0.5, 10),
        "gather_rows": (reals, index),
        "scatter_rows_": (reals[:2], index, torch.ones_like(reals)),
        "scale_": (reals, reals[0, 0]),
    }


CPU = torch.device("cpu")


@pytest.mark.parametrize("name", calls(CPU))
def test_opcheck(place, name):
    """Schemas name what is written, results have their own memory, fakes have the right shapes."""
    torch.library.opcheck(getattr(cuda.OPS, name).default, calls(place)[name])


@pytest.mark.parametrize("name", calls(CPU))
def test_kernels_run_on_the_stream_that_was_current(emulated_library, name):
    emulated_library.set(stream=STREAM)
    emulated_library.events()
    getattr(emulated_library.ops, name)(*calls(CPU)[name])
    emulated_library.set()
    before, *launches, after = emulated_library.events()
    assert (before, after) == ("device -1", "device before")
    assert launches
    assert {event.rpartition(" on ")[2] for event in launches} == {str(STREAM)}


def test_nothing_is_launched_for_nothing(emulated_cuda, emulated_library):
    emulated_library.events()
    empty = torch.zeros(0, dtype=torch.int64)
    stats = emulated_cuda.row_stats(
        RowChunk(torch.zeros(0, 64), empty, None, scale=1.0, ignore_index=-100)
    )
    assert stats.logp.shape == (0,)
    assert emulated_cuda.gather_rows(torch.zeros(3, 4), empty).shape == (0, 4)
    assert emulated_library.events() == ["device -1", "device before"] * 2


def test_operands_lie_where_the_view_says(place):
    """The second row's gradients start where its logits did, not right after the first row's."""
    logits, ids, _ = chunk(place, 70)
    memory = logits.as_strided((ROWS, logits.stride(0)), (logits.stride(0), 1))
    chunk_of = RowChunk(logits, ids, None, 1.0, -100)
    cuda.hybrid_rows_(chunk_of, table(place), clip=None, out_dtype=torch.bfloat16)
    assert torch.equal(memory[1].view(torch.bfloat16)[:70], operand_view(logits, torch.bfloat16)[1])
    assert memory[:, 70:].isnan().all()


@pytest.mark.gpu
@pytest.mark.parametrize("place", ["gpu"], indirect=True)
def test_a_graph_replays_the_step_on_new_logits(place):
    """No host sync, and no decision by the values of the tensors."""
    logits, ids, bias = chunk(place, 1000)
    options = {"clip": None, "out_dtype": torch.bfloat16}
    fresh = logits.as_strided((ROWS, logits.stride(0)), (logits.stride(0), 1)).clone()
    _, _, wanted = cuda.hybrid_rows_(
        RowChunk(logits, ids, bias, 1.0, -100), table(place), **options
    )
    wanted = wanted.clone()
    held = torch.zeros_like(fresh)
    graph, columns_of = torch.cuda.CUDAGraph(), table(place)
    with torch.cuda.graph(graph):
        _, _, found = cuda.hybrid_rows_(
            RowChunk(held[:, :1000], ids, bias, 1.0, -100), columns_of, **options
        )
    held.copy_(fresh)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(found.isnan(), wanted.isnan())
    assert torch.equal(found.nan_to_num(), wanted.nan_to_num())


@pytest.mark.gpu
@pytest.mark.parametrize("place", ["gpu"], indirect=True)
def test_a_graph_reads_the_factor_when_it_is_replayed(place):
    factor = torch.ones((), dtype=torch.float64, device=place)
    gradient = torch.ones(5000, dtype=torch.bfloat16, device=place)
    cuda.scale_(gradient, factor)  # loads the kernel, which a capture may not allow
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        cuda.scale_(gradient, factor)
    for by, total in ((1.0, 1.0), (0.5, 0.5), (1.0, 0.5), (8.0, 4.0)):
        factor.fill_(by)
        graph.replay()
        assert (gradient == total).all()
