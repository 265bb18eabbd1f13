"""The definition of the row kernels against autograd, in float64."""

import math

import pytest
import torch

from wavalign_fast.losses.policy import policy_tokens
from wavalign_fast.ops.chunked import row_ops as rk
from wavalign_fast.ops.chunked.interface import RowChunk, RowGrads
from wavalign_fast.ops.token_math import TokenTable, token_gradient

IGNORE = -100


def chunk(rows: int = 7, vocab: int = 11, *, bias: bool = True):
    g = torch.Generator().manual_seed(3)
    logits = 3 * torch.randn(rows, vocab, generator=g, dtype=torch.float64)
    targets = torch.randint(0, vocab, (rows,), generator=g)
    targets[2] = IGNORE
    shift = torch.randn(vocab, generator=g, dtype=torch.float64) if bias else None
    return logits, targets, shift


def autograd(logits, targets, bias, loss, scale=0.5):
    """Log-probs, entropies, lse and the gradient of ``loss`` of them, by autograd."""
    leaf = logits.clone().requires_grad_()
    z = leaf * scale + (0 if bias is None else bias)
    live = targets != IGNORE
    every = torch.log_softmax(z, dim=-1)
    logp = torch.where(live, every.gather(-1, targets.clamp(min=0)[:, None])[:, 0], 0.0)
    entropy = torch.where(live, -(every.exp() * every).sum(-1), 0.0)
    lse = torch.where(live, z.logsumexp(-1), 0.0)
    loss(logp, entropy, lse).backward()
    return logp.detach(), entropy.detach(), lse.detach(), leaf.grad


@pytest.mark.parametrize("bias", [False, True])
def test_statistics_and_gradient_are_those_of_autograd(bias: bool) -> None:
    logits, targets, shift = chunk(bias=bias)
    coefficients = torch.randn(3, len(targets), dtype=torch.float64)
    coefficients[:, 4] = 0.0
    logp, entropy, lse, wanted = autograd(
        logits, targets, shift, lambda *values: (torch.stack(values) * coefficients).sum()
    )
    stats = rk.row_stats(RowChunk(logits, targets, shift, scale=0.5, ignore_index=IGNORE))
    torch.testing.assert_close(stats.logp, logp)
    torch.testing.assert_close(stats.entropy, entropy)
    torch.testing.assert_close(stats.top + stats.log_sum, lse)
    work = logits.clone()
    grads = RowGrads(*coefficients)
    found = rk.row_gradient_(
        RowChunk(work, targets, shift, scale=0.5, ignore_index=IGNORE),
        stats,
        grads,
        out_dtype=torch.float64,
    )
    torch.testing.assert_close(found, wanted)
    assert found.data_ptr() == work.data_ptr()


@pytest.mark.parametrize("clip", [None, (0.8, 1.3)])
def test_the_token_gradient_is_that_of_the_policy_terms(clip) -> None:
    g = torch.Generator().manual_seed(5)
    logp, old, ref = (-4 * torch.rand(64, generator=g, dtype=torch.float64) for _ in range(3))
    old[:4] = logp[:4] - 30.0  # beyond the point where ratios grow linearly
    advantage = torch.randn(64, generator=g, dtype=torch.float64)
    policy, kl, anchor = (torch.rand(64, generator=g, dtype=torch.float64) for _ in range(3))
    policy[5:9], kl[9:12] = 0.0, 0.0
    leaf = logp.clone().requires_grad_()
    pair = None if clip is None else (1 - clip[0], clip[1] - 1)
    terms = policy_tokens(leaf - old, advantage, ref_gap=ref - leaf, clip=pair)
    (-policy * terms.surrogate + kl * terms.kl - anchor * leaf).sum().backward()
    old[5:9], ref[9:12] = math.nan, math.nan  # must not matter where the coefficient is 0
    table = TokenTable(policy, advantage, kl, anchor, old, ref)
    torch.testing.assert_close(token_gradient(logp, table, clip), leaf.grad)


def test_hybrid_rows_equals_statistics_then_gradient() -> None:
    logits, targets, shift = chunk()
    ones = torch.ones(len(targets), dtype=torch.float64)
    table = TokenTable(ones, ones.neg(), 0 * ones, 0.5 * ones)
    stats, g, dlogits = rk.hybrid_rows_(
        RowChunk(logits.clone(), targets, shift, 2.0, IGNORE),
        table,
        clip=None,
        out_dtype=torch.float64,
    )
    torch.testing.assert_close(g, torch.where(targets == IGNORE, 0.0, 0.5 * ones))
    again = rk.row_gradient_(
        RowChunk(logits.clone(), targets, shift, 2.0, IGNORE),
        stats,
        RowGrads(g),
        out_dtype=torch.float64,
    )
    assert torch.equal(dlogits, again)


def test_a_bad_id_makes_its_own_values_nan_and_its_gradient_0() -> None:
    logits, targets, _ = chunk()
    targets[3] = logits.shape[1]
    stats = rk.row_stats(RowChunk(logits, targets, None, scale=1.0, ignore_index=IGNORE))
    assert stats.logp.isnan().tolist() == [row == 3 for row in range(len(targets))]
    grads = RowGrads(torch.ones_like(stats.logp))
    dlogits = rk.row_gradient_(
        RowChunk(logits, targets, None, scale=1.0, ignore_index=IGNORE),
        stats,
        grads,
        out_dtype=torch.float64,
    )
    assert dlogits.isfinite().all()
    assert not dlogits[[2, 3]].any() and dlogits[[0, 1, 4]].any(dim=-1).all()


def test_narrow_rows_start_where_the_wide_ones_did() -> None:
    wide = torch.randn(3, 64)[:, :50]
    narrow = rk.operand_view(wide, torch.bfloat16)
    assert narrow.shape == (3, 50) and narrow.stride() == (128, 1)
    assert narrow[2].data_ptr() == wide[2].data_ptr()
    with pytest.raises(ValueError, match="no narrower"):
        rk.operand_view(narrow, torch.float32)


@pytest.mark.parametrize("capacity", [0, 3, 5, 9])
def test_compaction_lists_the_first_live_rows(capacity: int) -> None:
    live = torch.tensor([0, 1, 1, 0, 1, 1, 1], dtype=torch.bool)
    index, count = rk.compact_rows(live, capacity=capacity)
    wanted = [1, 2, 4, 5, 6, -1, -1, -1, -1]
    assert index.tolist() == wanted[:capacity] and count.tolist() == [5]


def test_scattered_rows_are_the_gathered_ones() -> None:
    source = torch.randn(6, 3)
    index = torch.tensor([4, 0, -1, 5])
    rows = rk.gather_rows(source, index)
    assert torch.equal(rows, torch.stack([source[4], source[0], torch.zeros(3), source[5]]))
    target = torch.full((6, 3), 7.0, dtype=torch.float64)
    rk.scatter_rows_(rows, index, target)
    assert torch.equal(target[[4, 0, 5]].float(), source[[4, 0, 5]])
    assert (target[1:4] == 7.0).all()
