"""Gradients of rows, in place: the interpreted sources, compared with the definition."""

import math
import mmap

import pytest
import torch

pytest.importorskip("triton")

from tests.gpu.conformance.interpreter.chunks import (
    BAD,
    BELOW,
    DEAD,
    IGNORE,
    KINDS,
    Chunk,
    assert_close,
    assert_rows_close,
    behind,
    chunk,
    definitions,
    table,
)
from tests.tolerances import GRADIENT_FACTOR, VALUE_FACTOR
from wavalign_fast.ops import triton as backend
from wavalign_fast.ops.chunked import row_ops as definition
from wavalign_fast.ops.chunked.interface import RowChunk, RowGrads, RowStats
from wavalign_fast.ops.token_math import TokenTable


def coefficients(rows: int, given: str) -> RowGrads:
    """Derivatives by the results that ``given`` names; a live row of zeros among them."""
    drawn = torch.randn(3, rows, generator=torch.Generator().manual_seed(2))
    drawn[:, 2] = 0.0
    drawn[0, 0] = 0.0
    return RowGrads(*(d if name in given else None for name, d in zip("gel", drawn, strict=True)))


def gradient(module, c: Chunk, stats: RowStats, grads: RowGrads, scale: float, dtype):
    return module.row_gradient_(
        RowChunk(c.logits, c.targets, c.bias, scale=scale, ignore_index=IGNORE),
        stats,
        grads,
        out_dtype=dtype,
    )


def check_gradient(c: Chunk, given: str, scale: float = 1.0) -> None:
    """Compares fp32 results with the truth, and bf16 results with its rounding."""
    grads = coefficients(len(c.targets), given)
    plain, truth = definitions(c, scale)
    exact = RowGrads(*(None if grad is None else grad.double() for grad in grads))
    c64 = c.double()
    wanted = gradient(definition, c64, truth, exact, scale, torch.float64)
    torch32 = gradient(definition, c.fresh(), plain, grads, scale, torch.float32)
    wide, narrow = c.fresh(), c.fresh()
    found = gradient(backend, wide, plain, grads, scale, torch.float32)
    assert found.data_ptr() == wide.logits.data_ptr()
    assert_rows_close(found, torch32, wanted, GRADIENT_FACTOR)
    rounded = gradient(backend, narrow, plain, grads, scale, torch.bfloat16)
    assert torch.equal(rounded, found.bfloat16())
    assert behind(wide.logits).isnan().all() and behind(narrow.logits).isnan().all()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_logits(kind):
    check_gradient(chunk(2111, kind=kind, bias=kind != "one"), "gel", 0.7)


@pytest.mark.parametrize("given", ["g", "e", "l", "gl"])
def test_every_set_of_derivatives(given):
    check_gradient(chunk(257, bias=True), given)


@pytest.mark.parametrize("vocab", [1, 2, 31, 1000, 1024, 4003, 10_241])
def test_every_length_of_a_row(vocab):
    check_gradient(chunk(vocab, bias=vocab % 2 == 0), "ge")


@pytest.mark.parametrize(
    ("dtype", "out"),
    [
        (torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float16),
        (torch.float16, torch.float16),
        (torch.float32, torch.float16),
    ],
)
def test_every_pair_of_types(dtype, out):
    c = chunk(1000, dtype=dtype)
    grads = coefficients(len(c.targets), "gel")
    stats, _ = definitions(c, 1.0)
    wide = Chunk(c.logits.float(), c.targets, c.bias).fresh()
    exact = gradient(backend, wide, stats, grads, 1.0, torch.float32)
    found = gradient(backend, c.fresh(), stats, grads, 1.0, out)
    assert torch.equal(found, exact.to(out))


def test_the_targets_own_entry_keeps_its_digits_where_its_probability_is_near_1():
    c = chunk(300, kind="one", irregular=False)
    stats = definitions(c, 1.0)[0]
    assert -1e-4 < stats.logp[3] < 0  # 1 - p is far smaller than the rounding of p
    grads = RowGrads(torch.ones_like(stats.logp))
    own = gradient(backend, c, stats, grads, 1.0, torch.float32).gather(1, c.targets[:, None])
    wanted = -stats.logp.double().expm1()
    torch.testing.assert_close(own[:, 0].double(), wanted, rtol=1e-6, atol=0)


def test_columns_may_be_expanded_or_every_other_number():
    """The derivative of a sum reaches a kernel as a number with stride 0."""
    c = chunk(300, irregular=False, bias=True)
    stats, one = definitions(c, 1.0)[0], torch.ones(())
    spread = Chunk(c.fresh().logits, c.targets.repeat_interleave(2)[::2], c.bias)
    spread = spread._replace(bias=c.bias.repeat_interleave(2)[::2])
    found = gradient(backend, spread, stats, RowGrads(one.expand(6)), 1.0, torch.float32)
    wanted = gradient(backend, c.fresh(), stats, RowGrads(one.repeat(6)), 1.0, torch.float32)
    assert torch.equal(found, wanted)


def test_rows_without_a_derivative_are_zero_whatever_they_hold():
    c = chunk(1000)
    rows = len(c.targets)
    stats, _ = definitions(c, 1.0)
    c.logits[2, 5], c.logits[2, 6], c.logits[DEAD, :] = math.nan, math.inf, math.nan
    grads = coefficients(rows, "gel")
    found = gradient(backend, c, stats, grads, 1.0, torch.bfloat16)
    zero = [not row.any() for row in found]
    assert zero == [row in (2, DEAD, BAD, BELOW) for row in range(rows)]
    assert found.isfinite().all()


def hybrid(module, c: Chunk, t: TokenTable, clip, scale: float, dtype):
    return module.hybrid_rows_(
        RowChunk(c.logits, c.targets, c.bias, scale=scale, ignore_index=IGNORE),
        t,
        clip=clip,
        out_dtype=dtype,
    )


def check_hybrid(c: Chunk, t: TokenTable, clip=None, scale: float = 1.0) -> None:
    t64 = TokenTable(*(None if column is None else column.double() for column in t))
    plain = hybrid(definition, c.fresh(), t, clip, scale, torch.float32)
    truth = hybrid(definition, c.double(), t64, clip, scale, torch.float64)
    wide, narrow = c.fresh(), c.fresh()
    stats, g, found = hybrid(backend, wide, t, clip, scale, torch.float32)
    for name in RowStats._fields:
        values = (getattr(s, name) for s in (stats, plain[0], truth[0]))
        assert_close(*values, VALUE_FACTOR)
    assert_rows_close(g, plain[1], truth[1], GRADIENT_FACTOR)
    assert_rows_close(found, plain[2], truth[2], GRADIENT_FACTOR)
    again = hybrid(backend, narrow, t, clip, scale, torch.bfloat16)
    assert torch.equal(again[2], found.bfloat16())
    for one, other in zip((*stats, g), (*again[0], again[1]), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    assert behind(wide.logits).isnan().all() and behind(narrow.logits).isnan().all()


@pytest.mark.parametrize("kind", KINDS)
def test_hybrid_rows_of_every_kind(kind):
    check_hybrid(chunk(2111, kind=kind, bias=True), table(6, every=False), scale=0.7)


@pytest.mark.parametrize("clip", [None, (0.8, 1.3)])
def test_hybrid_rows_with_old_and_reference_log_probs(clip):
    c = chunk(1000, rows=24)
    check_hybrid(c, table(24, every=True), clip)


@pytest.mark.parametrize("clip", [None, (0.5, 2.0), (0.5, 1e9), (-math.inf, math.inf)])
@pytest.mark.parametrize("given", ["", "old", "ref"])
def test_hybrid_rows_without_some_columns(given, clip):
    every = table(12, every=True)
    old = every.old_logp if given == "old" else None
    ref = every.ref_logp if given == "ref" else None
    check_hybrid(chunk(300, rows=12), every._replace(old_logp=old, ref_logp=ref), clip, 1.3)


@pytest.mark.parametrize("vocab", [1, 2, 31, 1024, 4003, 10_241])
def test_hybrid_rows_of_every_length(vocab):
    check_hybrid(chunk(vocab, bias=vocab % 2 == 1), table(6, every=True))


def test_each_sign_is_clipped_on_its_side():
    ratio = torch.tensor([0.5, 0.79, 0.81, 1.0, 1.29, 1.31, 2.0] * 2)
    advantage = torch.tensor([1.5] * 7 + [-1.5] * 7)
    c = chunk(300, rows=14, irregular=False)
    one, nothing = torch.ones(14), torch.zeros(14)
    old = definitions(c, 1.0)[0].logp - ratio.log()
    t = TokenTable(one, advantage, nothing, nothing, old)
    _, g, _ = hybrid(backend, c, t, (0.8, 1.3), 1.0, torch.bfloat16)
    kept = torch.tensor([True] * 5 + [False] * 4 + [True] * 5)
    torch.testing.assert_close(g, torch.where(kept, -ratio * advantage, 0.0), rtol=1e-5, atol=0)


def test_clipped_rows_and_rows_of_weight_zero_are_zero():
    c = chunk(600, rows=3, irregular=False)
    logp = definitions(c, 1.0)[0].logp
    one, nothing = torch.ones(3), torch.zeros(3)
    policy = torch.tensor([1.0, 1.0, 0.0])
    # ρ = e with A > 0 is clipped; row 2 has no weight, and NaN in the numbers that it ignores.
    t = TokenTable(policy, one, nothing, nothing, logp - torch.tensor([1.0, 0.0, math.nan]))
    _, g, found = hybrid(backend, c, t, (0.8, 1.3), 1.0, torch.bfloat16)
    assert g.tolist() == [0.0, pytest.approx(-1.0, abs=1e-5), 0.0]
    assert [bool(row.any()) for row in found] == [False, True, False]


def test_without_old_log_probs_the_ratio_is_one_to_the_bit():
    c = chunk(600, rows=3, irregular=False)
    one, nothing = torch.ones(3), torch.zeros(3)
    advantage = torch.tensor([0.3, -1.7, 2.9])
    _, g, _ = hybrid(
        backend, c, TokenTable(one, advantage, nothing, nothing), None, 1.0, torch.bfloat16
    )
    assert torch.equal(g, -advantage)


def test_no_row_and_one_row():
    none = hybrid(
        backend,
        chunk(31, rows=0, irregular=False),
        TokenTable(*[torch.empty(0)] * 4),
        None,
        1.0,
        torch.bfloat16,
    )
    assert none[2].shape == (0, 31) and none[1].shape == (0,)
    check_hybrid(chunk(600, rows=1, irregular=False), TokenTable(*torch.ones(4, 1)))


def test_a_row_has_the_same_bits_in_every_place():
    c, places = chunk(2111, rows=9), [8, 0, 5]
    t = table(9, every=True)
    selected = TokenTable(*(column[places].clone() for column in t))
    together = hybrid(backend, c.fresh(), t, None, 0.7, torch.float32)
    apart = hybrid(backend, c.rows(places), selected, None, 0.7, torch.float32)
    assert torch.equal(together[1][places], apart[1])
    assert torch.equal(together[2][places], apart[2])


def test_rows_beyond_2_to_the_31_elements():
    """The narrow view of the second row starts at element 2^32 + 128, on pages of its own."""
    c = chunk(100, rows=2, irregular=False)
    pitch = 2**31 + 64
    memory = mmap.mmap(-1, 4 * (pitch + 128), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    far = torch.frombuffer(memory, dtype=torch.float32).as_strided((2, 100), (pitch, 1))
    far.copy_(c.logits)
    t = TokenTable(*torch.ones(4, 2))
    wanted = hybrid(backend, c.fresh(), t, None, 1.0, torch.bfloat16)
    found = hybrid(backend, Chunk(far, c.targets, None), t, None, 1.0, torch.bfloat16)
    assert torch.equal(found[2], wanted[2]) and torch.equal(found[1], wanted[1])
