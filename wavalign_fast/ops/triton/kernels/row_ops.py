"""Row kernels: statistics and gradients of a chunk of logits, one program per row.

A program reads its row in blocks, once for the statistics and once for the gradient. Full blocks
are read without a mask: the vocabulary is not known to be a multiple of 16, and a mask that depends
on it would split every access into single elements. Rows are ``64 * pitch_64`` elements apart, so
the compiler knows for any pitch that each row starts on a 16-byte boundary. Row offsets have 64
bits, column offsets 32.
"""

import triton
import triton.language as tl

from wavalign_fast.ops.triton.kernels.softmax import (
    expm1,
    no_logits,
    online_step,
    rebase,
    row_summary,
)
from wavalign_fast.ops.triton.kernels.token_math import token_gradient

# These change between chunks and batches; a new value must not compile the kernel again.
RUNTIME = ("vocab", "pitch_64", "ignore_index")
# A program reads one element of these. Their alignment would specialise the kernel for nothing.
PER_ROW = (
    "targets",
    "policy_coef",
    "advantage",
    "kl_coef",
    "anchor_coef",
    "old_logp",
    "ref_logp",
    "logp",
    "entropy",
    "top",
    "log_sum",
    "grad_logp",
    "grad_entropy",
    "grad_lse",
)


@triton.jit
def read_logits(logits, bias, columns, vocab, scale, TAIL: tl.constexpr):
    """``z = logits * scale + bias`` of some columns; -inf beyond the vocabulary.

    The explicit fused multiply-add gives every read of a logit the same bits. Otherwise the
    target's logit could differ from the one in the sum.
    """
    if TAIL:
        inside = columns < vocab
        z = tl.load(logits + columns, mask=inside, other=float("-inf")).to(tl.float32)
        shift = tl.load(bias + columns, mask=inside, other=0.0) if bias is not None else 0.0
    else:
        z = tl.load(logits + columns).to(tl.float32)
        shift = tl.load(bias + columns) if bias is not None else 0.0
    return tl.fma(z, scale, shift)


@triton.jit
def row_statistics(logits, bias, target, vocab, scale, BLOCK: tl.constexpr):
    """``logp, entropy, top, log_sum`` of one row.

    Each lane keeps its own sums, and one reduction at the end combines them. So the order of
    summation depends only on the vocabulary and ``BLOCK``, and no block waits for a reduction.
    """
    lanes = tl.arange(0, BLOCK)
    top, total, weighted = no_logits(BLOCK)
    whole = vocab // BLOCK * BLOCK
    for start in tl.range(0, whole, BLOCK):
        z = read_logits(logits, bias, start + lanes, vocab, scale, False)
        top, total, weighted = online_step(z, top, total, weighted)
    z = read_logits(logits, bias, whole + lanes, vocab, scale, True)
    top, total, weighted = online_step(z, top, total, weighted)
    row_top = tl.max(top, axis=0)
    total, weighted = rebase(top, total, weighted, row_top)
    at_target = read_logits(logits, bias, target, vocab, scale, False)
    return row_summary(at_target, row_top, tl.sum(total, axis=0), tl.sum(weighted, axis=0))


@triton.jit
def block_gradient(z, columns, target, target_grad, p_coef, entropy_coef, stats):
    """``dL/dlogits`` of some columns; ``target_grad`` is the value at the target."""
    _, entropy, top, log_sum = stats
    log_p = z - top - log_sum
    p = tl.exp(log_p)
    slope = p_coef
    if entropy_coef is not None:
        # An entropy takes 0 * -inf as 0.
        slope = p_coef - entropy_coef * tl.where(p > 0.0, log_p + entropy, 0.0)
    return tl.where(columns == target, target_grad, p * slope)


@triton.jit
def target_gradient(g_logp, g_entropy, g_lse, logp, entropy, scale):
    """``dL/dlogits`` at the target, without the cancellation of ``(l - g) p + g`` at p near 1."""
    p = tl.exp(logp)
    target_grad = g_lse * p - g_logp * expm1(logp)
    if g_entropy is not None:
        target_grad -= g_entropy * tl.where(p > 0.0, p * (logp + entropy), 0.0)
    return target_grad * scale


@triton.jit
def write_gradient(
    logits,
    out,
    bias,
    target,
    target_grad,
    p_coef,
    entropy_coef,
    stats,
    vocab,
    scale,
    BLOCK: tl.constexpr,
):
    """Overwrites the row's logits with their gradient.

    If the gradient has a narrower type, block i of it overwrites bytes of block i // 2 of the
    logits. Warps run at their own pace, so a barrier must separate the last warp's read of that
    block from the first warp's write: every warp passes it after reading block i // 2 and before
    writing block i. Barriers after reading the blocks 0, 1, 2, 4, 8, ... suffice: for i > 0 there
    is a power of two in (i / 2, i], and for i = 0 there is 0. If the width is the same, each lane
    overwrites only the logit that it has just read.
    """
    WIDE: tl.constexpr = logits.dtype.element_ty.primitive_bitwidth
    NARROW: tl.constexpr = out.dtype.element_ty.primitive_bitwidth < WIDE
    target = target.to(tl.int32)  # the columns that it is compared with have 32 bits
    lanes = tl.arange(0, BLOCK)
    blocks = vocab // BLOCK
    for block in tl.range(0, blocks):
        columns = block * BLOCK + lanes
        z = read_logits(logits, bias, columns, vocab, scale, False)
        d = block_gradient(z, columns, target, target_grad, p_coef, entropy_coef, stats)
        if NARROW and block & (block - 1) == 0:
            tl.debug_barrier()
        tl.store(out + columns, d.to(out.dtype.element_ty))
    columns = blocks * BLOCK + lanes
    z = read_logits(logits, bias, columns, vocab, scale, True)
    d = block_gradient(z, columns, target, target_grad, p_coef, entropy_coef, stats)
    if NARROW:
        tl.debug_barrier()
    tl.store(out + columns, d.to(out.dtype.element_ty), mask=columns < vocab)


@triton.jit
def write_zeros(out, vocab, BLOCK: tl.constexpr):
    """Overwrites the row with a gradient of 0."""
    lanes = tl.arange(0, BLOCK)
    zeros = tl.zeros((BLOCK,), out.dtype.element_ty)
    whole = vocab // BLOCK * BLOCK
    for start in tl.range(0, whole, BLOCK):
        tl.store(out + start + lanes, zeros)
    columns = whole + lanes
    tl.store(out + columns, zeros, mask=columns < vocab)


@triton.jit
def row_starts(logits, out, row, pitch_64):
    """Pointers to the row in both types: one address, two element sizes."""
    WIDE: tl.constexpr = logits.dtype.element_ty.primitive_bitwidth
    RATIO: tl.constexpr = WIDE // out.dtype.element_ty.primitive_bitwidth
    start = row * pitch_64 * 64
    return logits + start, out + start * RATIO


@triton.jit
def is_known(target, vocab, ignore_index):
    """Whether the row has statistics: it is not dead, and its target is inside the vocabulary."""
    return (target != ignore_index) & (target >= 0) & (target < vocab)


@triton.jit
def row_statistics_if_known(logits, bias, target, vocab, scale, ignore_index, BLOCK: tl.constexpr):
    """``row_statistics``, or 0 for a dead row and NaN for a target outside the vocabulary.

    The logits of these two are not read.
    """
    logp = tl.where(target == ignore_index, 0.0, float("nan"))
    entropy, top, log_sum = logp, logp, logp
    if is_known(target, vocab, ignore_index):
        logp, entropy, top, log_sum = row_statistics(logits, bias, target, vocab, scale, BLOCK)
    return logp, entropy, top, log_sum


@triton.jit
def store_statistics(logp, entropy, top, log_sum, row, stats):
    tl.store(logp + row, stats[0])
    tl.store(entropy + row, stats[1])
    tl.store(top + row, stats[2])
    tl.store(log_sum + row, stats[3])


@triton.jit(do_not_specialize=RUNTIME, do_not_specialize_on_alignment=PER_ROW)
def row_stats_kernel(
    logits,
    targets,
    bias,
    logp,
    entropy,
    top,
    log_sum,
    vocab,
    pitch_64,
    scale,
    ignore_index,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + row)
    row_logits = logits + row * pitch_64 * 64
    stats = row_statistics_if_known(row_logits, bias, target, vocab, scale, ignore_index, BLOCK)
    store_statistics(logp, entropy, top, log_sum, row, stats)


@triton.jit(do_not_specialize=RUNTIME, do_not_specialize_on_alignment=PER_ROW)
def row_gradient_kernel(
    logits,
    out,
    targets,
    bias,
    logp,
    entropy,
    top,
    log_sum,
    grad_logp,
    grad_entropy,
    grad_lse,
    vocab,
    pitch_64,
    scale,
    ignore_index,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    row_logits, row_out = row_starts(logits, out, row, pitch_64)
    target = tl.load(targets + row)
    g_logp = 0.0
    g_entropy = 0.0
    g_lse = 0.0
    if grad_logp is not None:
        g_logp = tl.load(grad_logp + row)
    if grad_entropy is not None:
        g_entropy = tl.load(grad_entropy + row)
    if grad_lse is not None:
        g_lse = tl.load(grad_lse + row)
    wanted = (g_logp != 0.0) | (g_entropy != 0.0) | (g_lse != 0.0)
    if is_known(target, vocab, ignore_index) & wanted:
        stats = (
            tl.load(logp + row),
            tl.load(entropy + row),
            tl.load(top + row),
            tl.load(log_sum + row),
        )
        target_grad = target_gradient(g_logp, g_entropy, g_lse, stats[0], stats[1], scale)
        p_coef = (g_lse - g_logp) * scale
        entropy_coef = g_entropy * scale if grad_entropy is not None else None
        write_gradient(
            logits=row_logits,
            out=row_out,
            bias=bias,
            target=target,
            target_grad=target_grad,
            p_coef=p_coef,
            entropy_coef=entropy_coef,
            stats=stats,
            vocab=vocab,
            scale=scale,
            BLOCK=BLOCK,
        )
    else:
        write_zeros(row_out, vocab, BLOCK)


@triton.jit(do_not_specialize=RUNTIME, do_not_specialize_on_alignment=PER_ROW)
def hybrid_rows_kernel(
    logits,
    out,
    targets,
    bias,
    policy_coef,
    advantage,
    kl_coef,
    anchor_coef,
    old_logp,
    ref_logp,
    logp,
    entropy,
    top,
    log_sum,
    grad_logp,
    vocab,
    pitch_64,
    scale,
    ignore_index,
    clip_low,
    clip_high,
    CLIP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    row_logits, row_out = row_starts(logits, out, row, pitch_64)
    target = tl.load(targets + row)
    stats = row_statistics_if_known(row_logits, bias, target, vocab, scale, ignore_index, BLOCK)
    store_statistics(logp, entropy, top, log_sum, row, stats)
    terms = (policy_coef, advantage, kl_coef, anchor_coef, old_logp, ref_logp)
    g = token_gradient(stats[0], terms, row, clip_low, clip_high, CLIP)
    g = tl.where(target == ignore_index, 0.0, g)
    tl.store(grad_logp + row, g)
    # All reads for the statistics must precede the first write over the logits.
    tl.debug_barrier()
    if is_known(target, vocab, ignore_index) & (g != 0.0):
        target_grad = target_gradient(g, None, 0.0, stats[0], stats[1], scale)
        write_gradient(
            logits=row_logits,
            out=row_out,
            bias=bias,
            target=target,
            target_grad=target_grad,
            p_coef=-g * scale,
            entropy_coef=None,
            stats=stats,
            vocab=vocab,
            scale=scale,
            BLOCK=BLOCK,
        )
    else:
        write_zeros(row_out, vocab, BLOCK)
