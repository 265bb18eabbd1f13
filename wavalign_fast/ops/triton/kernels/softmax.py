"""Online softmax with entropy, in fp32, and the exponentials it needs without cancellation."""

import triton
import triton.language as tl

# Below every logit that a model can mean, and far enough above -FLT_MAX that differences of two
# such values, times a vocabulary, stay finite: -inf as a running maximum would make inf - inf.
FLOOR = tl.constexpr(-1e30)


@triton.jit
def online_step(z, top, total, weighted):
    """One more logit for each lane.

    With d = z - top of each that it has seen, ``total`` is Σ e^d and ``weighted`` is Σ e^d d. A
    banned logit (-inf) counts as ``FLOOR``, whose exponential is 0 beside any real logit. NaN
    stays NaN in both sums, whatever the maximum makes of it.
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
    """The two sums of a part of a row, relative to ``new_top >= top``."""
    shift = top - new_top
    factor = tl.exp(shift)
    return factor * total, factor * (weighted + shift * total)


@triton.jit
def row_summary(at_target, top, total, weighted):
    """``logp, entropy, top, log_sum`` of whole rows; NaN where a row holds NaN or only bans."""
    # The comparison is false for NaN: `minimum` and `maximum` would lose it.
    total = tl.where(top > FLOOR, total, float("nan"))
    top = tl.where(total == total, top, float("nan"))
    log_sum = tl.log(total)
    logp = at_target - top - log_sum
    entropy = log_sum - weighted / total
    # Both bounds hold exactly, not only up to rounding.
    logp = tl.where(logp > 0.0, 0.0, logp)
    entropy = tl.where(entropy < 0.0, 0.0, entropy)
    return logp, entropy, top, log_sum


@triton.jit
def expm1(x):
    """``e^x - 1``, right to an fp32 rounding near 0, where the difference cancels."""
    # Taylor to x^9 / 9!: relative error 3e-10 at |x| = 1/2, where the difference loses one bit.
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
