"""Chunks and matrices of more than 2^31 elements: mapped without memory, used at both ends."""

import pytest
import torch

from tests.gpu.conformance.problems import IGNORE, SETTINGS
from tools.cuda_on_cpu.cases import Sparse
from wavalign_fast.ops.chunked import row_ops as definition
from wavalign_fast.ops.chunked.interface import RowChunk, RowGrads, RowStats
from wavalign_fast.ops.token_math import TokenTable

from .kernels import (
    DTYPES,
    Chunk,
    GatherParams,
    HybridParams,
    Kernels,
    RowGradientParams,
    RowStatsParams,
    ScatterParams,
)

PITCH = 1 << 28
ROWS = 12
VOCAB = 100
assert (ROWS - 1) * PITCH > 1 << 31


@pytest.fixture(scope="module")
def problem() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(5)
    logits = torch.randn(ROWS, VOCAB, generator=g)
    return logits, torch.randint(0, VOCAB, (ROWS,), generator=g)


def far_rows(rows: torch.Tensor) -> Sparse:
    size = rows.element_size()
    segments = {r * PITCH * size: row for r, row in enumerate(rows)}
    return Sparse(ROWS * PITCH * size, segments)


def chunk(dtype: torch.dtype) -> Chunk:
    return Chunk(
        rows=ROWS, vocab=VOCAB, pitch=PITCH, dtype=DTYPES[dtype], scale=0.75, ignore_index=IGNORE
    )


def outputs() -> dict[str, torch.Tensor]:
    return {f"out.{name}": torch.zeros(ROWS) for name in RowStats._fields}


def gradient(left: dict[int, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    return torch.stack([row.view(dtype)[:VOCAB] for row in left.values()]).float()


@pytest.mark.parametrize(("arch", "shared_bytes"), [(90, 232448), (80, 600)])
def test_hybrid_rows(kernels: Kernels, problem, arch: int, shared_bytes: int) -> None:
    logits, targets = problem
    ones, zeros = torch.ones(ROWS), torch.zeros(ROWS)
    columns = {"policy_coef": ones, "advantage": ones, "kl_coef": zeros, "anchor_coef": zeros}
    settings = {"clip": None, "out_dtype": torch.float32}
    wanted, _, dz = definition.hybrid_rows_(
        RowChunk(logits.clone(), targets, None, **SETTINGS), TokenTable(**columns), **settings
    )
    params = HybridParams(
        chunk=chunk(torch.float32), out_dtype=DTYPES[torch.bfloat16], clip_low=-torch.inf,
        clip_high=torch.inf,
    )  # fmt: skip
    buffers = {"chunk.logits": far_rows(logits), "chunk.targets": targets, "grad_logp": zeros}
    buffers |= {f"table.{name}": column for name, column in columns.items()}
    device = kernels.on(arch=arch, shared_bytes=shared_bytes)
    result = device.launch("hybrid_rows", "hybrid_rows", params, buffers | outputs())
    torch.testing.assert_close(result.buffers["out.logp"], wanted.logp)
    found = gradient(result.buffers["chunk.logits"], torch.bfloat16)
    torch.testing.assert_close(found, dz, rtol=1e-2, atol=1e-5)


def test_statistics_and_gradient(kernels: Kernels, problem) -> None:
    logits, targets = problem[0].bfloat16(), problem[1]
    stats = definition.row_stats(RowChunk(logits, targets, None, **SETTINGS))
    inputs = {"chunk.logits": far_rows(logits), "chunk.targets": targets}
    params = RowStatsParams(chunk=chunk(torch.bfloat16))
    result = kernels.launch("row_stats", "row_stats", params, inputs | outputs())
    torch.testing.assert_close(result.buffers["out.logp"], stats.logp)
    grads = RowGrads(torch.ones(ROWS))
    settings = {"out_dtype": torch.bfloat16}
    dz = definition.row_gradient_(
        RowChunk(logits.clone(), targets, None, **SETTINGS), stats, grads, **settings
    )
    params = RowGradientParams(chunk=chunk(torch.bfloat16), out_dtype=DTYPES[torch.bfloat16])
    buffers = inputs | stats._asdict() | {"grad_logp": grads.logp}
    result = kernels.launch("row_gradient", "row_gradient", params, buffers)
    found = gradient(result.buffers["chunk.logits"], torch.bfloat16)
    torch.testing.assert_close(found, dz.float(), rtol=1e-2, atol=1e-5)


def test_gather_and_scatter(kernels: Kernels) -> None:
    width, size = 4096, 1 << 20
    far = size - 1
    assert far * width > 1 << 31
    row = torch.randn(width).bfloat16()
    index = torch.tensor([far])
    params = GatherParams(size=size, width=width, item_bytes=2, count=1)
    buffers = {
        "source": Sparse(size * width * 2, {far * width * 2: row}),
        "index": index,
        "rows": torch.zeros(1, width).bfloat16(),
    }
    result = kernels.launch("gather_scatter", "gather_rows", params, buffers)
    assert torch.equal(result.buffers["rows"][0], row)
    bf16 = DTYPES[torch.bfloat16]
    params = ScatterParams(count=1, width=width, size=size, rows_dtype=bf16, target_dtype=bf16)
    empty = Sparse(size * width * 2, {far * width * 2: torch.zeros(width).bfloat16()})
    buffers = {"rows": row, "index": index, "target": empty}
    result = kernels.launch("gather_scatter", "scatter_rows", params, buffers)
    assert torch.equal(result.buffers["target"][far * width * 2], row)
