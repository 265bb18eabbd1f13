"""The cost of a logit in benchmarks/gpu_model.py, compared with what compiled kernels execute."""

import pytest
import torch

from benchmarks import gpu_model
from tests.gpu.conformance.problems import SETTINGS, padded
from tools.ptx_emulator import Conditions, Counts
from wavalign_fast.gpu_specifications import GPUS
from wavalign_fast.ops.chunked.interface import RowChunk, RowGrads, RowStats
from wavalign_fast.ops.token_math import TokenTable

from .backends import Source, cuda_kernels

ROUND_BYTES = 4 * 16 * 512
"""The logits that a block takes from a row at a time: four vectors for each thread."""
H100 = GPUS[1]


def counted(source: Source, kernel: str, dtype: torch.dtype, vocab: int) -> Counts:
    """One row on sm_90a."""
    kernels = cuda_kernels(source, H100.arch, Conditions())
    logits, target = padded(torch.randn(1, vocab).to(dtype)), torch.tensor([5])
    one = torch.ones(1)
    rows = (logits, target, None)
    if kernel == "row_stats":
        kernels.row_stats(RowChunk(*rows, **SETTINGS))
    elif kernel == "row_gradient_":
        grads, stats = RowGrads(one), RowStats(-one, one, one, one)
        kernels.row_gradient_(RowChunk(*rows, **SETTINGS), stats, grads, out_dtype=torch.bfloat16)
    else:
        table = TokenTable(one, one, one, one)
        kernels.hybrid_rows_(
            RowChunk(*rows, **SETTINGS), table, clip=None, out_dtype=torch.bfloat16
        )
    return kernels.counted[-1]


def modelled(kernel: str, item: int, vocab: int) -> gpu_model.Work:
    if kernel == "row_stats":
        return gpu_model.row_stats_work(1, vocab, item)
    if kernel == "row_gradient_":
        return gpu_model.row_gradient_work(1, vocab, item)
    return gpu_model.hybrid_rows_work(1, vocab, H100, item)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kernel", ["row_stats", "row_gradient_", "hybrid_rows_"])
def test_a_logit_costs_what_the_model_says(
    cuda_source: Source, kernel: str, dtype: torch.dtype
) -> None:
    """From the difference of two rows, in which the fixed cost of a row cancels."""
    item = dtype.itemsize
    logits = ROUND_BYTES // item
    short, long = (counted(cuda_source, kernel, dtype, n * logits) for n in (1, 2))
    found = long - short
    exponentials = gpu_model.WARP_LANES * found.special_functions["ex2"]
    short, long = (modelled(kernel, item, n * logits) for n in (1, 2))
    assert exponentials == long.exponentials - short.exponentials
    instructions = gpu_model.WARP_LANES * found.warp_instructions / logits
    # Otherwise the table of benchmarks/gpu_model.py describes another version of the kernels.
    assert instructions == pytest.approx(gpu_model.PTX_INSTRUCTIONS[kernel, item], rel=0.02)
