"""Exact counts of the kernels at any size, for models of their speed.

Counts do not depend on the values in live rows and are proportional to the number of rows, so a row
kernel runs on one row of the given size. (In the vocabulary they are affine by whole turns of the
block; kernels that narrow in place add log2 of it barriers.) The scorer's products would take long,
but their counts are affine in whole spans of the vocabulary and in whole steps along the hidden
size: four small runs give the counts of every size with the same remainders.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch

from tests.gpu.conformance.cuda_on_cpu.kernels import DTYPES, GatherParams, ScatterParams
from tools.ptx_emulator import Conditions, Counts
from wavalign_fast.ops.chunked.interface import RowChunk, RowGrads, RowStats
from wavalign_fast.ops.token_math import TokenTable

from .backends import Source, cuda_kernels, row_kernels

COUNTING = Conditions(races=False)
ALIGNMENT = 512
"""The alignment of PyTorch's caching allocator; counts of sectors depend on it."""
ROW_KERNELS = ("row_stats", "row_gradient", "hybrid_rows")
COPY_KERNELS = ("gather_rows", "scatter_rows")
SCORER_KERNELS = ("score_spans", "score_merge")
TRITON_KERNELS = ROW_KERNELS + SCORER_KERNELS
CUDA_KERNELS = ROW_KERNELS + COPY_KERNELS
KERNELS = (*ROW_KERNELS, *SCORER_KERNELS, *COPY_KERNELS)

SPAN, TILE_ROWS = 1024, 128
"""Ids and rows of one program of the scorer."""
INNER = 64
"""The longest step that a program takes along the hidden size."""


@dataclass(frozen=True, kw_only=True)
class Size:
    vocab: int
    hidden: int
    logits: torch.dtype = torch.float32
    operand: torch.dtype = torch.bfloat16
    """The type of dlogits, of hidden states and of the weight."""


def row_kernel(backend: str, kernel: str, size: Size, source: Source, rows: int = 1) -> Counts:
    """Counts of one launch on live rows.

    Args:
        backend: one of ``BACKENDS``.
        kernel: one of ``ROW_KERNELS``.
        size: of a row.
        source: compiles CUDA sources.
        rows: of the launch, all live.
    """
    pitch = -(-size.vocab // 64) * 64
    logits = torch.zeros(rows, pitch, dtype=size.logits)[:, : size.vocab]
    targets = torch.full((rows,), size.vocab // 2)
    chunk = RowChunk(logits, targets, None, scale=1.0, ignore_index=-100)
    ones = torch.ones(rows)
    emulated = row_kernels(backend, source, COUNTING, alignment=ALIGNMENT)
    if kernel == "row_stats":
        emulated.row_stats(chunk)
    elif kernel == "row_gradient":
        stats, grads = RowStats(-ones, ones, 0 * ones, ones), RowGrads(ones)
        emulated.row_gradient_(chunk, stats, grads, out_dtype=size.operand)
    else:
        table = TokenTable(ones, ones, 0 * ones, ones)
        emulated.hybrid_rows_(chunk, table, clip=None, out_dtype=size.operand)
    (counts,) = emulated.counted
    return counts


def copy_kernel(arch: int, kernel: str, size: Size, source: Source, rows: int = 1) -> Counts:
    """Counts of gathering or scattering rows of hidden states with the CUDA kernels."""
    emulated = cuda_kernels(source, arch, COUNTING, alignment=ALIGNMENT)
    values = torch.zeros(rows, size.hidden, dtype=size.operand)
    shape = {"size": rows, "width": size.hidden, "count": rows}
    buffers = {"index": torch.arange(rows), "rows": values}
    if kernel == "gather_rows":
        params = GatherParams(item_bytes=size.operand.itemsize, **shape)
        buffers["source"] = values
    else:
        kind = DTYPES[size.operand]
        params = ScatterParams(rows_dtype=kind, target_dtype=kind, **shape)
        buffers["target"] = values
    emulated.launch("gather_scatter", kernel, params, buffers)
    return emulated.counted[0]


def scorer(target: str, size: Size, rows: int) -> dict[str, Counts]:
    """Counts of scoring ``rows`` rows, which should be a multiple of the rows of a tile (128)."""
    from wavalign_fast.ops import triton as backend

    from .triton_kernels import EmulatedTriton

    emulated = EmulatedTriton(target, COUNTING, ALIGNMENT)
    hidden = torch.zeros(rows, size.hidden, dtype=size.operand)
    weight = torch.zeros(size.vocab, size.hidden, dtype=size.operand)
    targets = torch.zeros(rows, dtype=torch.int64)
    emulated.call(backend.score, hidden, weight, targets, None, scale=1.0, ignore_index=-100)
    return dict(zip(SCORER_KERNELS, emulated.counted, strict=True))


def scorer_products(target: str, size: Size, rows: int) -> Counts:
    """Counts of the scorer's products at a size that would take too long to run."""
    small = Size(
        vocab=size.vocab % SPAN or SPAN,
        # The loop over the hidden size is pipelined: its first steps differ from the others.
        hidden=size.hidden % INNER + 3 * INNER,
        operand=size.operand,
    )
    if size.hidden <= small.hidden + INNER:
        return scorer(target, size, rows)["score_spans"]

    def at(spans: int, steps: int) -> Counts:
        vocab, hidden = small.vocab + spans * SPAN, small.hidden + steps * INNER
        return scorer(target, replace(small, vocab=vocab, hidden=hidden), rows)["score_spans"]

    spans = (size.vocab - small.vocab) // SPAN
    return bilinear(at, spans, (size.hidden - small.hidden) // INNER)


def scorer_merge(target: str, size: Size, rows: int) -> Counts:
    """Counts of the second kernel, which depend only on the rows and on the number of spans."""
    from wavalign_fast.ops.triton.configs import MERGE
    from wavalign_fast.ops.triton.kernels.scorer import score_merge_kernel

    from .triton_kernels import EmulatedTriton

    def merge(sums: torch.Tensor, own: torch.Tensor, targets: torch.Tensor, out: torch.Tensor):
        score_merge_kernel[(-(-rows // MERGE.rows),)](
            *sums.unbind(),
            at_target=own,
            targets=targets,
            **dict(zip(("logp", "entropy", "top", "log_sum"), out.unbind(), strict=True)),
            rows=rows,
            vocab=size.vocab,
            spans=sums.shape[1],
            ignore_index=-100,
            ROWS=MERGE.rows,
            SPANS=MERGE.spans,
            num_warps=MERGE.warps,
        )

    emulated = EmulatedTriton(target, COUNTING, ALIGNMENT)
    sums, out = torch.ones(3, -(-size.vocab // SPAN), rows), torch.zeros(4, rows)
    targets = torch.zeros(rows, dtype=torch.int64)
    emulated.call(merge, sums, torch.zeros(rows), targets, out, in_place=(out,))
    return emulated.counted[0]


def bilinear(at: Callable[[int, int], Counts], x: int, y: int) -> Counts:
    """``at(x, y)`` from its values at 0 and 1, where it is affine in each argument."""
    base = at(0, 0)
    by_x, by_y = at(1, 0) - base, at(0, 1) - base
    both = at(1, 1) - base - by_x - by_y
    return base + by_x * x + by_y * y + both * (x * y)


def every_count(
    backends: Iterable[str], kernels: Iterable[str], size: Size, rows: int, source: Source
) -> dict[str, dict[str, Counts]]:
    """By backend and kernel, for a launch on ``rows`` live rows; the scorer rounds up to tiles."""
    return {
        backend: {
            kernel: _count(backend, kernel, size, rows, source)
            for kernel in kernels
            if kernel in (CUDA_KERNELS if backend.startswith("cuda") else TRITON_KERNELS)
        }
        for backend in backends
    }


def _count(backend: str, kernel: str, size: Size, rows: int, source: Source) -> Counts:
    target = backend.split("-")[1]
    tiles = -(-rows // TILE_ROWS)
    if kernel == "score_spans":
        return scorer_products(target, size, TILE_ROWS) * tiles
    if kernel == "score_merge":
        return scorer_merge(target, size, TILE_ROWS) * tiles
    if kernel in COPY_KERNELS:
        return copy_kernel(80 if target == "sm_80" else 90, kernel, size, source) * rows
    return row_kernel(backend, kernel, size, source) * rows
