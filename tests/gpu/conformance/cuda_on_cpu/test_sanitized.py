"""The kernels under sanitizers, and their accesses to memory, byte by byte."""

import pytest
import torch

from tests.gpu.conformance import problems
from tests.gpu.conformance.problems import SETTINGS
from wavalign_fast.ops.chunked.interface import RowChunk, RowGrads, RowStats

from .kernels import Kernels, on_strategy
from .test_copies import TILE, compacted
from .test_groups import rewards, statistics

FP32, BF16 = torch.float32, torch.bfloat16
# Held by one block, held by several (the last one without a logit), and read twice in many steps.
WAYS = [
    ("held", 1009, FP32, BF16),
    ("held", 31, BF16, BF16),
    ("cluster", 257, FP32, BF16),
    ("cluster", 1000, BF16, BF16),
    ("cluster", 300, FP32, FP32),
    ("streamed", 4099, FP32, BF16),
    ("streamed", 1000, BF16, BF16),
]


def tight(logits: torch.Tensor) -> torch.Tensor:
    """The same rows in memory that ends with the last logit."""
    pitch = logits.stride(0)
    whole = torch.empty((logits.shape[0] - 1) * pitch + logits.shape[1], dtype=logits.dtype)
    return whole.as_strided(logits.shape, (pitch, 1)).copy_(logits)


def run_hybrid(kernels: Kernels, vocab: int, dtype: torch.dtype, out: torch.dtype, rows: int = 10):
    logits, targets, bias = problems.chunk(vocab, dtype)
    table = problems.table(torch.full((problems.ROWS,), -5.0))
    taken = type(table)(*(column[:rows] for column in table))
    chunk = RowChunk(tight(logits[:rows]), targets[:rows], bias, **SETTINGS)
    return kernels.hybrid_rows_(chunk, taken, clip=(0.8, 1.2), out_dtype=out)


def run_two_kernels(kernels: Kernels, vocab: int, dtype: torch.dtype, out: torch.dtype) -> None:
    logits, targets, bias = problems.chunk(vocab, dtype)
    inputs = (tight(logits[:3]), targets[:3], bias)
    stats = kernels.row_stats(RowChunk(*inputs, **SETTINGS))
    grads = RowGrads(*(grad[:3] for grad in problems.grads()))
    kernels.row_gradient_(RowChunk(*inputs, **SETTINGS), stats, grads, out_dtype=out)


@pytest.mark.parametrize(("strategy", "vocab", "dtype", "out"), WAYS)
def test_addresses_of_hybrid_rows(
    kernels: Kernels, strategy: str, vocab: int, dtype: torch.dtype, out: torch.dtype
) -> None:
    run_hybrid(on_strategy(kernels.on("addresses"), strategy, vocab, dtype), vocab, dtype, out)


@pytest.mark.parametrize(("strategy", "vocab", "dtype", "out"), WAYS)
def test_races_in_hybrid_rows(
    kernels: Kernels, strategy: str, vocab: int, dtype: torch.dtype, out: torch.dtype
) -> None:
    # The sanitizer takes a millisecond per thread; the third row is the dead one.
    device = on_strategy(kernels.on("races"), strategy, vocab, dtype)
    run_hybrid(device, vocab, dtype, out, rows=3)


@pytest.mark.parametrize("variant", ["addresses", "races", "accesses"])
def test_the_other_kernels(kernels: Kernels, variant: str) -> None:
    device = kernels.on(variant)
    run_two_kernels(device, 257, FP32, BF16)
    run_two_kernels(device, 2500, FP32, BF16)
    statistics(device, rewards(9, 5))
    compacted(device, torch.arange(2 * TILE + 5) % 7 < 4, 2 * TILE)


@pytest.mark.parametrize(("strategy", "vocab", "dtype", "out"), WAYS)
def test_each_logit_is_read_and_written_once(
    kernels: Kernels, strategy: str, vocab: int, dtype: torch.dtype, out: torch.dtype
) -> None:
    device = on_strategy(kernels.on("accesses"), strategy, vocab, dtype)
    run_hybrid(device, vocab, dtype, out, rows=3)
    units = (vocab + 7) // 8
    blocks = min(units, 8) if strategy == "cluster" else 1
    reads = 2 if strategy == "streamed" else 1
    # Every block of a row reads the target's logit again; the third row is a dead one.
    assert device.last.read["chunk.logits"] == 2 * dtype.itemsize * (reads * vocab + blocks)
    assert device.last.written["chunk.logits"] == 3 * out.itemsize * vocab


def test_the_recompute_order_reads_twice_and_writes_once(kernels: Kernels) -> None:
    device, vocab = kernels.on("accesses"), 1000
    logits, targets, bias = problems.chunk(vocab, FP32)
    inputs = (logits[:2], targets[:2], bias)
    stats = device.row_stats(RowChunk(*inputs, **SETTINGS))
    assert device.last.read["chunk.logits"] == 2 * 4 * (vocab + 1)
    assert device.last.written["chunk.logits"] == 0
    device.row_gradient_(
        RowChunk(*inputs, **SETTINGS), stats, RowGrads(torch.ones(2)), out_dtype=BF16
    )
    assert device.last.read["chunk.logits"] == 2 * 4 * vocab
    assert device.last.written["chunk.logits"] == 2 * 2 * vocab


def test_rows_without_loss_are_not_read(kernels: Kernels) -> None:
    device, ones = kernels.on("accesses"), torch.ones(1)
    logits, targets, bias = problems.chunk(1000, FP32)
    for row in (problems.DEAD, problems.BEYOND, problems.ZERO):
        inputs = (problems.padded(logits[row : row + 1]), targets[row : row + 1], bias)
        grads = RowGrads(0 * ones if row == problems.ZERO else ones)
        stats = RowStats(ones, ones, ones, ones)
        dz = device.row_gradient_(RowChunk(*inputs, **SETTINGS), stats, grads, out_dtype=BF16)
        assert not dz.any()
        assert device.last.read["chunk.logits"] == 0
