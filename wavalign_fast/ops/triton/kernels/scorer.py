"""Scores under a linear head without storing logits: GEMM and online softmax in one kernel.

A program multiplies a block of rows by a fixed span of the vocabulary, tile by tile, and keeps the
sums of an online softmax for each row. A second kernel merges the spans in order. The split into
spans depends only on the vocabulary, so the bits of a row depend neither on the other rows nor on
the number of multiprocessors. With few rows, the number of spans fills the GPU.
"""

import triton
import triton.language as tl

from wavalign_fast.ops.triton.kernels.softmax import FLOOR, expm1, no_logits, rebase, row_summary

# A new value of these must not compile the kernel again. The hidden size and the strides are not
# among them: with multiples of 16, the compiler copies 16 bytes at a time.
RUNTIME = ("rows", "vocab", "spans", "ignore_index")
# Slices of per-row tables: their alignment changes with the number of rows.
PER_ROW = (
    "tops",
    "totals",
    "weighteds",
    "at_target",
    "targets",
    "logp",
    "entropy",
    "top",
    "log_sum",
)


@triton.jit
def capped(x, cap):
    """``cap * tanh(x / cap)``, accurate to fp32 for small ``x`` too."""
    y = x / cap
    fall = expm1(-2.0 * tl.abs(y))
    size = cap * (-fall / (2.0 + fall))
    return tl.where(y < 0.0, -size, size)


@triton.jit
def load_targets(targets, row, rows, vocab, ignore_index):
    """The targets of some rows, and which of them are ids. Rows beyond the last one are dead."""
    target = tl.load(targets + row, mask=row < rows, other=ignore_index)
    return target, (target != ignore_index) & (target >= 0) & (target < vocab)


@triton.jit
def tile_product(
    hidden,
    weight,
    first_id,
    row_offsets,
    vocab,
    hidden_size,
    weight_stride,
    IDS: tl.constexpr,
    INNER: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``hidden · weight[first_id : first_id + IDS]^T``, accumulated in fp32.

    The base address of the tile has 64 bits, offsets inside it 32. Ids beyond the vocabulary read
    the last row of the weight again, so no load needs a mask; the caller drops their logits.
    """
    inner = tl.arange(0, INNER)
    ids = tl.minimum(tl.arange(0, IDS), vocab - 1 - first_id)
    tile = weight + tl.cast(first_id, tl.int64) * weight_stride
    x_places = hidden + row_offsets[:, None] + inner[None, :]
    w_places = tile + (ids * weight_stride)[:, None] + inner[None, :]
    acc = tl.zeros((row_offsets.shape[0], IDS), tl.float32)
    for k in tl.range(0, hidden_size, INNER):
        if EVEN:
            x = tl.load(x_places + k)
            w = tl.load(w_places + k)
        else:
            inside = (k + inner < hidden_size)[None, :]
            x = tl.load(x_places + k, mask=inside, other=0.0)
            w = tl.load(w_places + k, mask=inside, other=0.0)
        acc = tl.dot(x, w.T, acc, input_precision=PRECISION)
    return acc


@triton.jit
def tile_logits(acc, bias, ids, vocab, scale, softcap):
    """``z`` of a tile of the GEMM; -inf beyond the vocabulary."""
    z = acc if softcap is None else capped(acc, softcap)
    inside = ids < vocab
    shift = tl.load(bias + ids, mask=inside, other=0.0)[None, :] if bias is not None else 0.0
    return tl.where(inside[None, :], tl.fma(z, scale, shift), float("-inf"))


@triton.jit
def store_target_logits(places, z, ids, target, first_id, IDS: tl.constexpr):
    """Stores the target's logit of each row whose target is in the tile."""
    is_target = ids[None, :] == target[:, None]
    in_tile = (target >= first_id) & (target < first_id + IDS)
    # At most one column is not 0, so the sum is exactly that logit.
    tl.store(places, tl.sum(tl.where(is_target, z, 0.0), axis=1), mask=in_tile)


@triton.jit
def online_tile(z, top, total, weighted):
    """Adds a tile of logits [ROWS, IDS] to the sums of each row, as ``online_step`` does."""
    z = tl.maximum(z, FLOOR, propagate_nan=tl.PropagateNan.ALL)
    new_top = tl.maximum(top, tl.max(z, axis=1))
    total, weighted = rebase(top, total, weighted, new_top)
    below = z - new_top[:, None]
    e = tl.exp(below)
    return new_top, total + tl.sum(e, axis=1), weighted + tl.sum(e * below, axis=1)


@triton.jit(do_not_specialize=RUNTIME, do_not_specialize_on_alignment=PER_ROW)
def score_spans_kernel(
    hidden,
    weight,
    targets,
    bias,
    tops,
    totals,
    weighteds,
    at_target,
    rows,
    vocab,
    hidden_size,
    hidden_stride,
    weight_stride,
    scale,
    softcap,
    ignore_index,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    IDS: tl.constexpr,
    INNER: tl.constexpr,
    TILES: tl.constexpr,
    DISABLE_LICM: tl.constexpr,
):
    # Rows vary first: programs that run at the same time share a span of the weight in L2.
    first_row = tl.program_id(0) * ROWS
    span = tl.program_id(1)
    row = first_row + tl.arange(0, ROWS)
    target, known = load_targets(targets, row, rows, vocab, ignore_index)
    target = tl.where(known, target, -1).to(tl.int32)
    # Skip a block of rows that are all dead.
    if tl.max(known.to(tl.int32), axis=0) > 0:
        row_offsets = tl.minimum(tl.arange(0, ROWS), rows - 1 - first_row) * hidden_stride
        top, total, weighted = no_logits(ROWS)
        start = span * TILES * IDS
        end = tl.minimum(start + TILES * IDS, vocab)
        for first_id in tl.range(start, end, IDS, disable_licm=DISABLE_LICM):
            acc = tile_product(
                hidden=hidden + first_row.to(tl.int64) * hidden_stride,
                weight=weight,
                first_id=first_id,
                row_offsets=row_offsets,
                vocab=vocab,
                hidden_size=hidden_size,
                weight_stride=weight_stride,
                IDS=IDS,
                INNER=INNER,
                EVEN=EVEN,
                PRECISION=PRECISION,
            )
            ids = first_id + tl.arange(0, IDS)
            z = tile_logits(acc, bias, ids, vocab, scale, softcap)
            store_target_logits(at_target + row, z, ids, target, first_id, IDS)
            top, total, weighted = online_tile(z, top, total, weighted)
        place = span.to(tl.int64) * rows + row
        tl.store(tops + place, top, mask=row < rows)
        tl.store(totals + place, total, mask=row < rows)
        tl.store(weighteds + place, weighted, mask=row < rows)


@triton.jit(do_not_specialize=RUNTIME, do_not_specialize_on_alignment=PER_ROW)
def score_merge_kernel(
    tops,
    totals,
    weighteds,
    at_target,
    targets,
    logp,
    entropy,
    top,
    log_sum,
    rows,
    vocab,
    spans,
    ignore_index,
    ROWS: tl.constexpr,
    SPANS: tl.constexpr,
):
    """The statistics of each row, merged from its spans in the order of the vocabulary."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    row_top, total, weighted = no_logits(ROWS)
    for first in tl.range(0, spans, SPANS):
        span = first + tl.arange(0, SPANS)
        place = span.to(tl.int64)[:, None] * rows + row[None, :]
        mask = (span < spans)[:, None] & inside[None, :]
        span_top = tl.load(tops + place, mask=mask, other=FLOOR)
        span_total = tl.load(totals + place, mask=mask, other=0.0)
        span_weighted = tl.load(weighteds + place, mask=mask, other=0.0)
        new_top = tl.maximum(row_top, tl.max(span_top, axis=0))
        total, weighted = rebase(row_top, total, weighted, new_top)
        span_total, span_weighted = rebase(span_top, span_total, span_weighted, new_top[None, :])
        total += tl.sum(span_total, axis=0)
        weighted += tl.sum(span_weighted, axis=0)
        row_top = new_top
    target, known = load_targets(targets, row, rows, vocab, ignore_index)
    target_logit = tl.load(at_target + row, mask=inside & known, other=0.0)
    row_logp, row_entropy, row_top, row_log_sum = row_summary(
        target_logit, row_top, total, weighted
    )
    # No span has written these rows: dead rows get 0, targets outside the vocabulary NaN.
    fill = tl.where(target == ignore_index, 0.0, float("nan"))
    tl.store(logp + row, tl.where(known, row_logp, fill), mask=inside)
    tl.store(entropy + row, tl.where(known, row_entropy, fill), mask=inside)
    tl.store(top + row, tl.where(known, row_top, fill), mask=inside)
    tl.store(log_sum + row, tl.where(known, row_log_sum, fill), mask=inside)
