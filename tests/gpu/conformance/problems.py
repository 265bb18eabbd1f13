"""Chunks of logits with every kind of row that a row kernel must handle."""

import math

import torch

from wavalign_fast.ops.chunked.interface import RowGrads
from wavalign_fast.ops.token_math import TokenTable

IGNORE = -100
SCALE = 0.75
"""Exact in fp32, so that float64 multiplies by the same number."""

SETTINGS = {"scale": SCALE, "ignore_index": IGNORE}

ORDINARY, LAST, DEAD, BEYOND, NEGATIVE, LOW, HIGH, NOT_A_NUMBER, CERTAIN, ZERO = range(10)
ROWS = 10


def padded(values: torch.Tensor, pitch: int | None = None) -> torch.Tensor:
    """[R, V] with NaN between its rows, which start on 16 bytes."""
    rows, vocab = values.shape
    pitch = pitch or (vocab + 63) // 64 * 64
    return torch.full((rows, pitch), math.nan).to(values.dtype)[:, :vocab].copy_(values)


def chunk(
    vocab: int, dtype: torch.dtype, *, banned: bool = True
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits [10, V], targets and a bias; the names above say what each row is for."""
    g = torch.Generator().manual_seed(vocab)
    logits = 3 * torch.randn(ROWS, vocab, generator=g)
    targets = torch.randint(0, vocab, (ROWS,), generator=g)
    targets[LAST] = vocab - 1
    logits[DEAD] = math.nan
    for row, target in ((DEAD, IGNORE), (BEYOND, vocab), (NEGATIVE, -7)):
        targets[row] = target
    logits[LOW] -= 300
    logits[HIGH] += 2e4
    logits[NOT_A_NUMBER, vocab // 2] = math.nan
    logits[CERTAIN, targets[CERTAIN]] += 40
    logits[ZERO, 0] = math.nan  # its coefficients are 0, and so are its gradients
    bias = torch.randn(vocab, generator=g)
    if banned and vocab > 2:
        bias[torch.randperm(vocab, generator=g)[: vocab // 3]] = -math.inf
        bias[targets[targets.clamp(0, vocab - 1) == targets]] = 0.5
    return padded(logits.to(dtype)), targets, bias


def table(logp: torch.Tensor, *, old: bool = True, ref: bool = True) -> TokenTable:
    """Coefficients of all signs and zeros; ratios within the clip bounds and on both sides.

    Args:
        logp: [10] of the policy, for old and reference log-probs near it.
    """
    g = torch.Generator().manual_seed(7)
    near = torch.where(logp.isfinite(), logp, -1.0)
    excess = torch.tensor([0.1, -0.1, 0.0, 0.5, 0.5, -0.6, 0.6, 0.1, 25.0, 0.0])
    advantage = torch.randn(ROWS, generator=g)
    advantage[LOW], advantage[HIGH], advantage[CERTAIN] = -1.0, -0.5, -2.0
    policy, kl, anchor = torch.rand(3, ROWS, generator=g)
    policy[LAST] = kl[LAST] = 0.0  # an anchor row: it has no old log-prob
    anchor[HIGH] = anchor[CERTAIN] = 0.0
    for coefficient in (policy, kl, anchor):
        coefficient[ZERO] = 0.0
    old_logp = near - excess
    ref_logp = near + torch.randn(ROWS, generator=g)
    old_logp[LAST] = ref_logp[LAST] = old_logp[ZERO] = math.nan
    advantage[LAST] = math.nan
    return TokenTable(
        policy_coef=policy,
        advantage=advantage,
        kl_coef=kl,
        anchor_coef=anchor,
        old_logp=old_logp if old else None,
        ref_logp=ref_logp if ref else None,
    )


def grads(*, entropy: bool = True, lse: bool = True) -> RowGrads:
    g = torch.Generator().manual_seed(11)
    values = torch.randn(3, ROWS, generator=g)
    values[:, ZERO] = 0.0
    return RowGrads(values[0], values[1] if entropy else None, values[2] if lse else None)


def doubled(values: tuple[torch.Tensor | None, ...]) -> list[torch.Tensor | None]:
    return [None if value is None else value.double() for value in values]
