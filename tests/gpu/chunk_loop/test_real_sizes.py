"""Sizes that run other code than small tests do, and that only a GPU can handle.

Rows spread over a cluster of blocks, rows that no cluster holds, many tiles of flags, and offsets
beyond 2^31 elements. The emulators of the other rungs run the same code on small shapes.
"""

import pytest
import torch

from wavalign_fast.ops import backend_status
from wavalign_fast.ops.chunked import row_ops
from wavalign_fast.ops.chunked.interface import RowChunk, RowGrads, RowKernels
from wavalign_fast.ops.chunked.kernels import row_kernels_of
from wavalign_fast.ops.token_math import TokenTable

pytestmark = pytest.mark.gpu

# The plan of an H100 for fp32 rows of these lengths (csrc/cuda/hybrid_rows.cu, plan_hybrid_rows).
HEADS = {
    "a block": 28_000,
    "clusters of 2": 50_000,
    "clusters of 4": 100_000,
    "clusters of 8, the paper's head": 168_072,
    "clusters of 8, one on a multiprocessor": 300_000,
    "read twice": 500_000,
}
ROWS, IGNORED, BAD = 6, 1, 4
WANTED = {"scale": 0.9, "ignore_index": -100}


@pytest.fixture(params=["cuda", "triton"])
def kernels(request: pytest.FixtureRequest) -> RowKernels:
    reason = backend_status()[request.param]
    if reason is not None:
        pytest.skip(reason)
    return row_kernels_of(request.param)


def some_rows(vocab: int, device: str) -> tuple[torch.Tensor, torch.Tensor, TokenTable]:
    g = torch.Generator().manual_seed(vocab)
    pitch = (vocab + 127) // 64 * 64
    logits = torch.full((ROWS, pitch), torch.nan)
    logits[:, :vocab] = 4 * torch.randn(ROWS, vocab, generator=g)
    ids = torch.randint(0, vocab, (ROWS,), generator=g)
    ids[0], ids[-1] = 0, vocab - 1
    ids[IGNORED], ids[BAD] = -100, vocab
    columns = (0.1 + torch.rand(6, ROWS, generator=g)).to(device)
    table = TokenTable(*columns[:4], -12 * columns[4], -12 * columns[5])
    return logits.to(device)[:, :vocab], ids.to(device), table


def assert_close(found: tuple, wanted: tuple) -> None:
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=2e-5, atol=2e-5, equal_nan=True)


@pytest.mark.parametrize("vocab", HEADS.values(), ids=HEADS)
def test_rows_of_real_heads(kernels, vocab, device="cuda"):
    logits, ids, table = some_rows(vocab, device)
    clip = {"clip": (0.8, 1.2)}
    exact = logits.double()
    truth = row_ops.row_stats(RowChunk(exact, ids, None, **WANTED))
    stats = kernels.row_stats(RowChunk(logits, ids, None, **WANTED))
    assert_close(stats, truth)
    grads = RowGrads(table.policy_coef, table.kl_coef - 0.5, -table.anchor_coef)
    again, *_ = some_rows(vocab, device)
    found = kernels.row_gradient_(
        RowChunk(again, ids, None, **WANTED), stats, grads, out_dtype=torch.float32
    )
    wanted = row_ops.row_gradient_(
        RowChunk(exact.clone(), ids, None, **WANTED), truth, grads, out_dtype=torch.float64
    )
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-6)
    hybrid = row_ops.hybrid_rows_(
        RowChunk(exact, ids, None, **WANTED), table, **clip, out_dtype=torch.float64
    )
    width = logits.stride(0)
    memory = logits.as_strided((ROWS, width), (width, 1))
    stats, g, found = kernels.hybrid_rows_(
        RowChunk(logits, ids, None, **WANTED), table, **clip, out_dtype=torch.bfloat16
    )
    assert_close((*stats, g), (*hybrid[0], hybrid[1]))
    torch.testing.assert_close(found.double(), hybrid[2], rtol=8e-3, atol=1e-6)
    assert memory[:, vocab:].isnan().all()


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_flags_of_many_tiles(kernels, share, size=1_000_003, device="cuda"):
    live = (torch.rand(size, generator=torch.Generator().manual_seed(1)) < share).to(device)
    there = live.nonzero().flatten()
    for capacity in (len(there) // 2, len(there), size + 5000):
        index, count = kernels.compact_rows(live, capacity=capacity)
        filled = torch.nn.functional.pad(there, (0, max(0, capacity - len(there))), value=-1)
        assert torch.equal(index, filled[:capacity]) and count.tolist() == [len(there)]


def test_rows_beyond_2_to_the_31_elements(kernels):
    """The last row has the bits that it has alone. Takes 9 GB of logits."""
    vocab, rows = 168_072, 13_000
    logits, ids, table = some_rows(vocab, "cuda")
    width = logits.stride(0)
    if torch.cuda.mem_get_info()[0] < 3 * rows * width * 4:
        pytest.skip("less than 27 GB of memory is free")
    many = torch.zeros(rows, width, device="cuda")[:, :vocab]
    many[-1], targets = logits[0], torch.full((rows,), -100, device="cuda")
    targets[-1] = ids[0]
    whole = TokenTable(*(column[:1].expand(rows).contiguous() for column in table))
    alone = TokenTable(*(column[:1] for column in table))
    options = {"clip": None, "out_dtype": torch.bfloat16}
    one = kernels.hybrid_rows_(RowChunk(logits[:1], ids[:1], None, **WANTED), alone, **options)
    stats, g, found = kernels.hybrid_rows_(
        RowChunk(many, targets, None, **WANTED), whole, **options
    )
    for values, wanted in zip((*stats, g), (*one[0], one[1]), strict=True):
        assert torch.equal(values[-1:], wanted) and not values[:-1].any()
    assert torch.equal(found[-1:], one[2]) and not found[:-1].any()
