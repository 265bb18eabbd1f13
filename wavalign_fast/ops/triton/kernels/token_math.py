"""Derivative of the hybrid loss by a token's log-prob, for Triton.

The definition is `token_gradient` of `wavalign_fast/ops/token_math.py`.
"""

import triton
import triton.language as tl

from wavalign_fast.ops.triton.kernels.softmax import expm1

# From here on (in nats) ratios follow their tangent, as in the definition.
LINEAR_FROM = tl.constexpr(20.0)
E_LINEAR_FROM = tl.constexpr(485165195.4097903)


@triton.jit
def surrogate_slope(logp, advantage, old_logp, row, clip_low, clip_high, CLIP: tl.constexpr):
    """Derivative of the surrogate by ``logp``: 0 where it is clipped, else A times dρ/dlogp."""
    slope = 1.0
    ratio = 1.0
    if old_logp is not None:
        excess = logp - tl.load(old_logp + row)
        # `minimum` would drop a NaN.
        slope = tl.exp(tl.where(excess > LINEAR_FROM, LINEAR_FROM, excess))
        beyond = tl.where(excess > LINEAR_FROM, excess - LINEAR_FROM, 0.0)
        ratio = slope + E_LINEAR_FROM * beyond
    derivative = slope * advantage
    if CLIP:
        clipped = tl.minimum(tl.maximum(ratio, clip_low), clip_high)
        derivative = tl.where(ratio * advantage <= clipped * advantage, derivative, 0.0)
    return derivative


@triton.jit
def token_gradient(logp, terms, row, clip_low, clip_high, CLIP: tl.constexpr):
    """``dL/dlogp`` of the row. A term with a coefficient of 0 is 0, whatever its inputs are.

    ``terms`` are pointers to the columns of ``TokenTable``, in its order.
    """
    policy_coef, advantage, kl_coef, anchor_coef, old_logp, ref_logp = terms
    policy = tl.load(policy_coef + row)
    derivative = surrogate_slope(
        logp, tl.load(advantage + row), old_logp, row, clip_low, clip_high, CLIP
    )
    g = tl.where(policy > 0.0, -policy * derivative, 0.0)
    if ref_logp is not None:
        gap = tl.load(ref_logp + row) - logp
        kl = tl.load(kl_coef + row)
        slope = -expm1(tl.where(gap > LINEAR_FROM, LINEAR_FROM, gap))
        g += tl.where(kl > 0.0, kl * slope, 0.0)
    return g - tl.load(anchor_coef + row)
