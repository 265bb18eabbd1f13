"""The compiled row kernels, Triton's and CUDA's, compared with their definition in float64."""

import pytest
import torch

from tests.gpu.conformance import problems
from tests.gpu.conformance.checks import check_rows, check_stats
from tests.gpu.conformance.problems import SETTINGS
from tools.ptx_emulator import Conditions
from wavalign_fast.ops.chunked import row_ops as definition
from wavalign_fast.ops.chunked.interface import RowChunk, RowGrads
from wavalign_fast.ops.token_math import TokenTable

from .backends import BACKENDS, EVERY_CONDITION, Source, cuda_kernels, row_kernels

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
# A Triton block has 512 columns, 2048 from 4097 on; a CUDA thread takes 8 at a time.
VOCABS = {1: (FP32, FP32), 257: (BF16, FP16), 1031: (FP32, BF16), 4100: (BF16, BF16)}


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("vocab", VOCABS)
def test_hybrid_rows(name: str, vocab: int, cuda_source: Source) -> None:
    dtype, out_dtype = VOCABS[vocab]
    logits, targets, bias = problems.chunk(vocab, dtype)
    logp = definition.row_stats(RowChunk(logits.float(), targets, bias, **SETTINGS)).logp
    table = problems.table(logp)
    clip = (0.8, 1.3) if vocab % 2 else None
    truth, g, dz = definition.hybrid_rows_(
        RowChunk(logits.double(), targets, bias.double(), **SETTINGS),
        TokenTable(*problems.doubled(table)),
        clip=clip,
        out_dtype=torch.float64,
    )
    # Warps apart are slow: the longest rows run under two conditions only.
    for conditions in EVERY_CONDITION[: 2 if vocab > 4096 else 3]:
        backend = row_kernels(name, cuda_source, conditions)
        stats, found_g, found = backend.hybrid_rows_(
            RowChunk(logits, targets, bias, **SETTINGS), table, clip=clip, out_dtype=out_dtype
        )
        check_stats(stats, truth, logits)
        check_rows(found_g[:, None], g[:, None], logits, g)
        check_rows(found, dz, logits, g)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("vocab", [3, 1031])
def test_statistics_then_gradient(name: str, vocab: int, cuda_source: Source) -> None:
    dtype, out_dtype = (BF16, BF16) if vocab == 3 else (FP32, FP16)
    logits, targets, bias = problems.chunk(vocab, dtype)
    shift = bias if vocab == 3 else None
    double = None if shift is None else shift.double()
    truth = definition.row_stats(RowChunk(logits.double(), targets, double, **SETTINGS))
    for conditions, all_grads in zip(EVERY_CONDITION, (True, False, True), strict=True):
        backend = row_kernels(name, cuda_source, conditions)
        stats = backend.row_stats(RowChunk(logits, targets, shift, **SETTINGS))
        check_stats(stats, truth, logits)
        grads = problems.grads(entropy=all_grads, lse=all_grads)
        size = sum(grad.double().abs() for grad in grads if grad is not None)
        wanted = definition.row_gradient_(
            RowChunk(logits.double(), targets, double, **SETTINGS),
            truth,
            RowGrads(*problems.doubled(grads)),
            out_dtype=torch.float64,
        )
        found = backend.row_gradient_(
            RowChunk(logits, targets, shift, **SETTINGS), stats, grads, out_dtype=out_dtype
        )
        check_rows(found, wanted, logits, size)


@pytest.mark.parametrize("conditions", EVERY_CONDITION, ids=["together", "early", "approximate"])
@pytest.mark.parametrize("strategy", ["cluster", "streamed"])
def test_ways_of_the_cuda_kernel(
    strategy: str, conditions: Conditions, cuda_source: Source
) -> None:
    """A row spread over the eight blocks of a cluster, and a row that is read twice."""
    vocab = 1031
    logits, targets, bias = problems.chunk(vocab, FP32)
    table = problems.table(definition.row_stats(RowChunk(logits, targets, bias, **SETTINGS)).logp)
    arch, shared = (90, (1031 // 8 + 8) // 8 * 8 * 4 + 512) if strategy == "cluster" else (80, 600)
    backend = cuda_kernels(cuda_source, arch, conditions, shared_bytes=shared)
    clip = (0.8, 1.3)
    truth, g, dz = definition.hybrid_rows_(
        RowChunk(logits.double(), targets, bias.double(), **SETTINGS),
        TokenTable(*problems.doubled(table)),
        clip=clip,
        out_dtype=torch.float64,
    )
    stats, found_g, found = backend.hybrid_rows_(
        RowChunk(logits, targets, bias, **SETTINGS), table, clip=clip, out_dtype=BF16
    )
    check_stats(stats, truth, logits)
    check_rows(found_g[:, None], g[:, None], logits, g)
    check_rows(found, dz, logits, g)
    assert backend.counted[0].blocks == (80 if strategy == "cluster" else 10)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_row_has_the_same_bits_in_every_order_and_batch(name: str, cuda_source: Source) -> None:
    logits, targets, bias = problems.chunk(1031, FP32)
    wanted = None
    for order, rows in ((None, slice(None)), (5, slice(None)), (6, slice(4, None))):
        backend = row_kernels(name, cuda_source, Conditions(order=order))
        part = problems.padded(logits[rows])
        stats = backend.row_stats(RowChunk(part, targets[rows], bias, **SETTINGS))
        bits = torch.stack([value.view(torch.int32) for value in stats])
        wanted = bits if wanted is None else wanted
        assert torch.equal(bits, wanted[:, rows])


@pytest.mark.parametrize(
    ("name", "vocab"), [*zip(BACKENDS, (168055, 168072, 168072, 168055), strict=True)]
)
def test_the_vocabulary_of_the_model(name: str, vocab: int, cuda_source: Source) -> None:
    """On sm_90a the CUDA kernel spreads the row over a cluster, on sm_80 it reads it twice."""
    rows = torch.tensor([problems.ORDINARY, problems.LAST])
    logits, targets, bias = problems.chunk(vocab, FP32)
    logits, targets = problems.padded(logits[rows]), targets[rows]
    table = TokenTable(*(column[rows] for column in problems.table(torch.zeros(10))))
    clip = None
    truth, g, dz = definition.hybrid_rows_(
        RowChunk(logits.double(), targets, bias.double(), **SETTINGS),
        TokenTable(*problems.doubled(table)),
        clip=clip,
        out_dtype=torch.float64,
    )
    # Checking so many accesses for races is slow, and shorter rows show the same races.
    backend = row_kernels(name, cuda_source, Conditions(races=False))
    stats, _, found = backend.hybrid_rows_(
        RowChunk(logits, targets, bias, **SETTINGS), table, clip=clip, out_dtype=BF16
    )
    check_stats(stats, truth, logits)
    check_rows(found, dz, logits, g)
