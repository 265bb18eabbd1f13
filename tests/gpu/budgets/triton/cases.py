"""Calls of the public launchers that between them compile every configuration.

The tensors are CPU memory that nothing reads. Triton specialises a kernel for their shapes, types
and strides, as it would for a GPU's tensors.
"""

from collections.abc import Callable

import torch

from wavalign_fast.ops import triton as backend
from wavalign_fast.ops.chunked.interface import RowChunk, RowGrads, RowStats
from wavalign_fast.ops.token_math import TokenTable

VOCAB = 168_072  # VITA-Audio's: a multiple of 8 and of no higher power of two
HIDDEN = 3584
IGNORE = -100


def chunk(
    rows: int, dtype: torch.dtype, *, bias: bool, vocab: int = VOCAB
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    logits = torch.empty(rows, (vocab + 63) // 64 * 64, dtype=dtype)[:, :vocab]
    return logits, torch.empty(rows, dtype=torch.int64), torch.empty(vocab) if bias else None


def columns(count: int, rows: int) -> tuple[torch.Tensor, ...]:
    return torch.empty(count, rows).unbind()


def row_stats(dtype: torch.dtype, *, bias: bool, rows: int = 2) -> None:
    backend.row_stats(RowChunk(*chunk(rows, dtype, bias=bias), scale=1.0, ignore_index=IGNORE))


def row_gradient(dtype: torch.dtype, out: torch.dtype, *, bias: bool, every: bool) -> None:
    """``every``: with gradients of entropy and lse too."""
    stats, grads = RowStats(*columns(4, 2)), RowGrads(*columns(3 if every else 1, 2))
    backend.row_gradient_(
        RowChunk(*chunk(2, dtype, bias=bias), scale=1.0, ignore_index=IGNORE),
        stats,
        grads,
        out_dtype=out,
    )


def hybrid_rows(
    dtype: torch.dtype, out: torch.dtype, *, bias: bool, every: bool, vocab: int = VOCAB
) -> None:
    """``every``: off-policy, with a reference and with clipping."""
    table = TokenTable(*columns(6 if every else 4, 2))
    backend.hybrid_rows_(
        RowChunk(*chunk(2, dtype, bias=bias, vocab=vocab), scale=1.0, ignore_index=IGNORE),
        table,
        clip=(0.8, 1.2) if every else None,
        out_dtype=out,
    )


def score(dtype: torch.dtype, *, hidden_size: int = HIDDEN, bias: bool, softcap: bool) -> None:
    hidden = torch.empty(200, hidden_size, dtype=dtype)
    weight = torch.empty(VOCAB, hidden_size, dtype=dtype)
    targets = torch.empty(200, dtype=torch.int64)
    backend.score(
        hidden,
        weight,
        targets,
        torch.empty(VOCAB) if bias else None,
        scale=1.0,
        softcap=30.0 if softcap else None,
        ignore_index=IGNORE,
    )


def compaction(total: int = 5000, capacity: int = 3000) -> None:
    index, _ = backend.compact_rows(torch.empty(total, dtype=torch.bool), capacity)
    rows = backend.gather_rows(torch.empty(total, HIDDEN, dtype=torch.bfloat16), index)
    backend.scatter_rows_(rows, index, torch.empty(total, HIDDEN))


def scale(dtype: torch.dtype, size: int = 9000, items: int = 0) -> None:
    """``items`` is where the gradient starts, in elements beyond a multiple of 16 bytes."""
    backend.scale_(torch.empty(size + items, dtype=dtype)[items:], torch.empty(()))


BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
CASES: dict[str, Callable[[], None]] = {
    "row_stats/fp32": lambda: row_stats(FP32, bias=False),
    "row_stats/bf16+bias": lambda: row_stats(BF16, bias=True),
    "row_gradient/fp32-bf16": lambda: row_gradient(FP32, BF16, bias=False, every=False),
    "row_gradient/fp32-bf16+all": lambda: row_gradient(FP32, BF16, bias=True, every=True),
    "row_gradient/fp32-fp32+all": lambda: row_gradient(FP32, FP32, bias=True, every=True),
    "row_gradient/bf16-bf16": lambda: row_gradient(BF16, BF16, bias=False, every=False),
    "hybrid_rows/fp32-bf16": lambda: hybrid_rows(FP32, BF16, bias=False, every=False),
    "hybrid_rows/fp32-bf16+all": lambda: hybrid_rows(FP32, BF16, bias=True, every=True),
    "hybrid_rows/fp32-bf16+all-small": lambda: hybrid_rows(
        FP32, BF16, bias=True, every=True, vocab=4000
    ),
    "score/bf16": lambda: score(BF16, bias=False, softcap=False),
    "score/bf16+all": lambda: score(BF16, bias=True, softcap=True),
    "score/bf16-odd": lambda: score(BF16, hidden_size=HIDDEN - 1, bias=False, softcap=False),
    "score/fp16-ragged": lambda: score(FP16, hidden_size=HIDDEN + 16, bias=False, softcap=False),
    "score/fp32": lambda: score(FP32, bias=True, softcap=False),
    "score/fp32+all-odd": lambda: score(FP32, hidden_size=HIDDEN - 1, bias=True, softcap=True),
    "compaction/bf16-fp32": lambda: compaction(),
    "scale/fp32": lambda: scale(FP32),
    "scale/bf16": lambda: scale(BF16),
    "scale/fp16": lambda: scale(FP16),
}
