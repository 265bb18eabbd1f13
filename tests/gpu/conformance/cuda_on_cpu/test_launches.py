"""Decisions of the host: how a row is held, and which launches are refused."""

import pytest
import torch

from tests.gpu.conformance import problems
from tests.gpu.conformance.problems import SETTINGS
from tools.cuda_on_cpu.cases import H100_SHARED
from tools.cuda_on_cpu.launcher import LaunchError
from wavalign_fast.ops.chunked.interface import RowChunk, RowGrads, RowStats
from wavalign_fast.ops.token_math import TokenTable

from .kernels import DTYPES, Kernels, PlanQuery, on_strategy

HELD, STREAMED = 0, 1
A100, ADA = 166912, 101376
FP32, BF16 = torch.float32, torch.bfloat16


@pytest.mark.parametrize(
    ("arch", "limit", "vocab", "dtype", "strategy", "cluster"),
    [
        (90, H100_SHARED, 32, FP32, HELD, 1),
        (90, H100_SHARED, 28000, FP32, HELD, 1),
        (90, H100_SHARED, 32000, FP32, HELD, 2),
        (90, H100_SHARED, 128256, FP32, HELD, 8),
        (90, H100_SHARED, 168072, FP32, HELD, 8),
        (90, H100_SHARED, 168055, FP32, HELD, 8),
        (90, H100_SHARED, 168072, BF16, HELD, 4),
        (90, H100_SHARED, 256000, FP32, HELD, 8),
        (90, H100_SHARED, 460000, FP32, HELD, 8),
        (90, H100_SHARED, 470000, FP32, STREAMED, 1),
        (90, H100_SHARED, 920000, BF16, HELD, 8),
        (100, H100_SHARED, 168072, FP32, HELD, 8),
        (120, ADA, 168072, FP32, HELD, 8),
        (120, ADA, 210000, FP32, STREAMED, 1),
        (80, A100, 168072, FP32, STREAMED, 1),
        (80, A100, 41000, FP32, HELD, 1),
        (80, A100, 83000, BF16, HELD, 1),
        (89, ADA, 41000, FP32, STREAMED, 1),
        (89, ADA, 25000, FP32, HELD, 1),
    ],
)
def test_how_a_row_is_held(
    kernels: Kernels,
    arch: int,
    limit: int,
    vocab: int,
    dtype: torch.dtype,
    strategy: int,
    cluster: int,
) -> None:
    query = PlanQuery(arch=arch, shared_limit=limit, vocab=vocab, dtype=DTYPES[dtype])
    plan = kernels.launch("hybrid_rows", "plan_hybrid_rows", query, {}).params
    assert (plan.strategy, plan.cluster) == (strategy, cluster)
    if strategy == HELD:
        assert vocab * dtype.itemsize <= plan.shared_bytes * cluster
        assert plan.shared_bytes <= limit - 512
        # The smallest cluster that lets two blocks share a multiprocessor, or that holds the row.
        assert cluster == 1 or 2 * plan.shared_bytes * cluster > vocab * dtype.itemsize
    else:
        assert plan.shared_bytes == 0


def hybrid(device: Kernels, vocab: int, dtype: torch.dtype = FP32, out: torch.dtype = BF16):
    logits, targets, bias = problems.chunk(vocab, dtype)
    table = problems.table(torch.full((problems.ROWS,), -5.0))
    return device.hybrid_rows_(
        RowChunk(logits, targets, bias, **SETTINGS), table, clip=None, out_dtype=out
    )


def test_a_device_without_room_for_a_cluster_streams(kernels: Kernels) -> None:
    device = on_strategy(kernels, "cluster", 1000, FP32)
    refused = device.on(most_cluster=1)
    found, wanted = hybrid(refused, 1000), hybrid(device, 1000)
    torch.testing.assert_close(found[0].logp, wanted[0].logp, equal_nan=True)
    torch.testing.assert_close(found[2], wanted[2], equal_nan=True)
    assert refused.last.launches == 1


@pytest.mark.parametrize(
    ("change", "logits"),
    [
        ("a result wider than the logits", torch.zeros(2, 64, dtype=BF16)),
        ("rows that do not start on 16 bytes", torch.zeros(2, 65)[:, :64]),
        ("logits in fp16", torch.zeros(2, 64, dtype=torch.float16)),
        ("rows that overlap", torch.zeros(1, 128).as_strided((2, 64), (32, 1))),
        ("no vocabulary", torch.zeros(2, 64)[:, :0]),
    ],
)
def test_malformed_chunks_are_refused(kernels: Kernels, change: str, logits: torch.Tensor) -> None:
    targets, wide = torch.zeros(2, dtype=torch.int64), torch.float32
    values = torch.ones(2)
    stats = RowStats(values, values, values, values)
    grads = RowGrads(values)
    with pytest.raises(LaunchError):
        kernels.row_gradient_(
            RowChunk(logits, targets, None, **SETTINGS), stats, grads, out_dtype=wide
        )
    table = TokenTable(*([values] * 6))
    with pytest.raises(LaunchError):
        kernels.hybrid_rows_(
            RowChunk(logits, targets, None, **SETTINGS), table, clip=None, out_dtype=wide
        )
    if change != "a result wider than the logits":
        with pytest.raises(LaunchError):
            kernels.row_stats(RowChunk(logits, targets, None, **SETTINGS))
