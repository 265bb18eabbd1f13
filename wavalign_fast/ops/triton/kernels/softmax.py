"""Online softmax with entropy in fp32, and an ``expm1`` without cancellation."""

import triton
import triton.language as tl

# The initial running maximum, below any real logit. -inf would give inf - inf. This is far enough
# above -FLT_MAX that a difference of two such values, times the vocabulary, stays finite.
FLOOR = tl.constexpr(-1e30)


@triton.jit
def no_logits(SIZE: tl.constexpr):
    """``top, total, weighted`` of no logits, for each of ``SIZE`` lanes or rows."""
    top = tl.full((SIZE,), FLOOR, tl.float32)
    return top, tl.zeros((SIZE,), tl.float32), tl.zeros((SIZE,), tl.float32)


@triton.jit
def online_step(z, top, total, weighted):
    """Adds one logit to the sums of each lane.

    With d = z - top for each logit so far, ``total`` is Σ e^d and ``weighted`` is Σ e^d d. A banned
    logit (-inf) counts as ``FLOOR``; beside any real logit its exponential is 0. A NaN makes both
    sums NaN, even if the maximum drops it.
    """
    z = tl.maximum(z, FLOOR, propagate_nan=tl.PropagateNan.ALL)
    new_top = tl.maximum(top, z)
    shift = top - new_top
    factor = tl.exp(shift)
    below = z - new_top
    e = tl.exp(below)
    weighted = factor * (weighted + shift * total) + e * below
    total = factor * total + e
    return new_top, total, weighted


@triton.jit
def rebase(top, total, weighted, new_top):
    """The two sums of some logits, relative to ``new_top >= top`` instead of ``top``."""
    shift = top - new_top
    factor = tl.exp(shift)
    return factor * total, factor * (weighted + shift * total)


@triton.jit
def row_summary(at_target, top, total, weighted):
    """``logp, entropy, top, log_sum`` of whole rows; NaN if a row has a NaN or only banned ids."""
    # Comparisons with NaN are false. `minimum` and `maximum` would drop the NaN.
    total = tl.where(top > FLOOR, total, float("nan"))
    top = tl.where(total == total, top, float("nan"))
    log_sum = tl.log(total)
    logp = at_target - top - log_sum
    entropy = log_sum - weighted / total
    # logp <= 0 and entropy >= 0 hold exactly, not only up to rounding.
    logp = tl.where(logp > 0.0, 0.0, logp)
    entropy = tl.where(entropy < 0.0, 0.0, entropy)
    return logp, entropy, top, log_sum


@triton.jit
def expm1(x):
    """``e^x - 1``, accurate to an fp32 rounding near 0, where the difference would cancel."""
    # Taylor series to x^9 / 9!: its relative error is 3e-10 at |x| = 1/2. Beyond, the difference
    # loses at most one bit.
    series = 1.0 / 362880.0
    series = series * x + 1.0 / 40320.0
    series = series * x + 1.0 / 5040.0
    series = series * x + 1.0 / 720.0
    series = series * x + 1.0 / 120.0
    series = series * x + 1.0 / 24.0
    series = series * x + 1.0 / 6.0
    series = series * x + 0.5
    series = series * x + 1.0
    return tl.where(tl.abs(x) < 0.5, series * x, tl.exp(x) - 1.0)
