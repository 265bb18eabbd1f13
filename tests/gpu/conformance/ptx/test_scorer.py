"""The Triton scorer as compiled: products on tensor cores, copies in flight, a merge."""

import math

import pytest
import torch

pytest.importorskip("triton")

from tests.gpu.conformance.checks import check_stats
from tools.ptx_emulator import Conditions
from wavalign_fast.ops import triton as backend
from wavalign_fast.ops.chunked import row_ops as definition
from wavalign_fast.ops.chunked.interface import RowChunk

from .triton_kernels import EmulatedTriton

IGNORE = -100
# Tiles have 64 to 256 ids, spans 1024, and the inner loop takes 32 or 64 columns at a time.
SHAPES = {
    "one tile": (5, 64, 37),
    "a ragged end of the hidden size": (37, 80, 301),
    "two spans and a ragged vocabulary": (9, 144, 1031),
    "an odd hidden size": (9, 63, 150),
}
LATE, EARLY = Conditions(approximate=1), Conditions(order=1, late_copies=False)
APART = Conditions(order=2)


def check(
    target: str,
    shape: tuple[int, int, int],
    conditions: Conditions,
    *,
    dtype: torch.dtype = torch.bfloat16,
    bias: bool = False,
    softcap: float | None = None,
) -> EmulatedTriton:
    rows, hidden_size, vocab = shape
    g = torch.Generator().manual_seed(vocab)
    hidden = torch.randn(rows, hidden_size, generator=g).to(dtype)
    weight = (3 / hidden_size**0.5 * torch.randn(vocab, hidden_size, generator=g)).to(dtype)
    targets = torch.randint(0, vocab, (rows,), generator=g)
    targets[1], targets[2], targets[3] = IGNORE, vocab, vocab - 1
    hidden[1] = math.nan
    shift = torch.randn(vocab, generator=g) if bias else None
    if shift is not None:
        shift[vocab // 2] = -math.inf
    emulated = EmulatedTriton(target, conditions)
    found = emulated.call(
        backend.score,
        hidden,
        weight,
        targets,
        shift,
        scale=0.75,
        softcap=softcap,
        ignore_index=IGNORE,
    )
    logits = hidden.double() @ weight.double().T
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    double = None if shift is None else shift.double()
    truth = definition.row_stats(RowChunk(logits, targets, double, scale=0.75, ignore_index=IGNORE))
    check_stats(found, truth, logits)
    assert emulated.kernels == ["score_spans_kernel", "score_merge_kernel"]
    return emulated


@pytest.mark.parametrize("target", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("shape", SHAPES)
def test_scores(target: str, shape: str) -> None:
    # One warp after the other is slow: three conditions only for short shapes.
    for conditions in (LATE, EARLY, APART)[: 2 if "vocabulary" in shape else 3]:
        emulated = check(target, SHAPES[shape], conditions)
        matrix = "wgmma.mma_async" if target == "sm_90a" else "mma.sync"
        used = [opcode for opcode in emulated.counted[0].instructions if matrix in opcode]
        assert used, "no tensor core was used"


@pytest.mark.parametrize("target", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_other_types_with_every_option(target: str, dtype: torch.dtype) -> None:
    # fp32 products are sums of scalar products: many instructions, and no other kind of copy.
    for conditions in (LATE, EARLY)[: 1 if dtype == torch.float32 else 2]:
        check(target, (20, 80, 140), conditions, dtype=dtype, bias=True, softcap=5.0)
