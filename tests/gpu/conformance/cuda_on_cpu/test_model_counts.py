"""The counts of benchmarks/gpu_model.py, compared with the kernels."""

from dataclasses import replace

import pytest
import torch

from benchmarks import gpu_model
from tests.gpu.conformance.problems import SETTINGS, padded
from wavalign_fast.gpu_specifications import GPUS, Gpu
from wavalign_fast.ops.chunked.interface import RowChunk, RowGrads
from wavalign_fast.ops.token_math import TokenTable

from .kernels import DTYPES, Kernels, PlanQuery

A100, H100, *_ = GPUS
ROWS = 3
MOST_THREADS = 512
PAIRS = [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.bfloat16)]
SMALL = 6 * 1024
"""Shared memory for the smaller row, or for an eighth of the larger one, and no more."""


def check(kernels: Kernels, work: gpu_model.Work, item: int) -> None:
    """The chunk's bytes are those of the model; some or all threads also load the target's."""
    read, written = (
        sum(a.bytes * a.passes for a in arrays if a.between) for arrays in (work.reads, work.writes)
    )
    assert kernels.last.written["chunk.logits"] == written
    targets = kernels.last.read["chunk.logits"] - read
    assert 0 <= targets <= ROWS * item * MOST_THREADS and targets % (ROWS * item) == 0


@pytest.mark.parametrize(("dtype", "out"), PAIRS, ids=str)
@pytest.mark.parametrize("vocab", [1000, 4099])
def test_bytes_are_those_that_the_kernels_ask_for(
    kernels: Kernels, vocab: int, dtype: torch.dtype, out: torch.dtype
) -> None:
    logits = padded(torch.randn(ROWS, vocab).to(dtype))
    targets = torch.tensor([0, vocab // 2, vocab - 1])
    ones = torch.ones(ROWS)
    size, item = (ROWS, vocab), dtype.itemsize
    watched = kernels.on("accesses")
    stats = watched.row_stats(RowChunk(logits, targets, None, **SETTINGS))
    check(watched, gpu_model.row_stats_work(*size, item), item)
    watched.row_gradient_(
        RowChunk(logits, targets, None, **SETTINGS), stats, RowGrads(ones), out_dtype=out
    )
    check(watched, gpu_model.row_gradient_work(*size, item, out.itemsize), item)
    for gpu in (H100, replace(A100, shared_bytes=SMALL)):
        on_gpu = watched.on(arch=gpu.arch, shared_bytes=gpu.shared_bytes)
        table = TokenTable(ones, ones, ones, ones)
        on_gpu.hybrid_rows_(
            RowChunk(logits, targets, None, **SETTINGS), table, clip=None, out_dtype=out
        )
        work = gpu_model.hybrid_rows_work(*size, gpu, item, out.itemsize)
        check(on_gpu, work, item)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.name)
def test_rows_are_held_where_the_launch_holds_them(
    kernels: Kernels, gpu: Gpu, dtype: torch.dtype
) -> None:
    for vocab in (1, 40000, 41600, 83300, 168072, 262144, 464000, 470000, 2**20):
        query = PlanQuery(
            vocab=vocab, shared_limit=gpu.shared_bytes, arch=gpu.arch, dtype=DTYPES[dtype]
        )
        plan = kernels.launch("hybrid_rows", "plan_hybrid_rows", query, {}).params
        streamed = 1
        assert gpu_model.held_on_chip(gpu, vocab, dtype.itemsize) == (plan.strategy != streamed)
