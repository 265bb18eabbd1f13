"""Scores without logits: the interpreted sources, compared with the float64 definition."""

import math
import mmap
from typing import NamedTuple
from unittest import mock

import pytest
import torch

pytest.importorskip("triton")

from tests.gpu.conformance.interpreter.chunks import IGNORE, assert_close
from tests.tolerances import VALUE_FACTOR
from wavalign_fast.ops import triton as backend
from wavalign_fast.ops.chunked import row_ops as definition
from wavalign_fast.ops.chunked.interface import RowChunk, RowStats
from wavalign_fast.ops.triton import configs, scorer
from wavalign_fast.ops.triton.configs import ScorerConfig


class Head(NamedTuple):
    hidden: torch.Tensor
    weight: torch.Tensor
    targets: torch.Tensor
    bias: torch.Tensor | None


def head(
    rows: int, hidden_size: int, vocab: int, *, dtype=torch.bfloat16, bias=False, gain=3.0
) -> Head:
    """``gain`` is the logits' standard deviation."""
    g = torch.Generator().manual_seed(rows + vocab)
    hidden = torch.randn(rows, hidden_size, generator=g).to(dtype)
    weight = (gain / hidden_size**0.5 * torch.randn(vocab, hidden_size, generator=g)).to(dtype)
    targets = torch.randint(0, vocab, (rows,), generator=g)
    shift = torch.randn(vocab, generator=g) if bias else None
    return Head(hidden, weight, targets, shift)


def in_plain_torch(p: Head, scale: float, softcap: float | None, dtype: torch.dtype) -> RowStats:
    logits = p.hidden.to(dtype) @ p.weight.to(dtype).T
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    bias = None if p.bias is None else p.bias.to(dtype)
    return definition.row_stats(RowChunk(logits, p.targets, bias, scale=scale, ignore_index=IGNORE))


def score(p: Head, scale: float = 1.0, softcap: float | None = None) -> RowStats:
    return backend.score(*p, scale=scale, softcap=softcap, ignore_index=IGNORE)


def check(p: Head, scale: float = 1.0, softcap: float | None = None) -> None:
    found = score(p, scale, softcap)
    plain, truth = (in_plain_torch(p, scale, softcap, d) for d in (torch.float32, torch.float64))
    for name in RowStats._fields:
        assert_close(getattr(found, name), getattr(plain, name), getattr(truth, name), VALUE_FACTOR)


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("bias", [False, True])
def test_every_option(bias, softcap):
    p = head(20, 96, 700, bias=bias)
    if p.bias is not None:
        p.bias[3], p.bias[5] = -math.inf, -math.inf
        p.targets[1] = 5
    p.targets[2], p.targets[3], p.targets[4] = IGNORE, 700, -7
    p.hidden[2] = math.nan
    check(p, 0.7, softcap)


# A tile has 128 ids and a program 1024 (64 and 1024 with an odd hidden size).
@pytest.mark.parametrize(
    ("hidden_size", "vocab"),
    [
        *[(64, 1), (64, 2), (80, 31), (128, 128), (16, 1024), (64, 1025), (48, 2100)],
        *[(1, 257), (63, 1000), (97, 1031)],
    ],
)
def test_every_shape(hidden_size, vocab):
    check(head(5, hidden_size, vocab))


@pytest.mark.parametrize("architecture", ["sm_90", "gfx942"])
def test_the_tile_of_other_architectures(architecture):
    with mock.patch.object(configs, "architecture", lambda: architecture):
        check(head(5, 80, 2100))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_every_type(dtype):
    check(head(9, 200, 300, dtype=dtype))


@pytest.mark.parametrize("gain", [0.01, 8e3])
def test_flat_and_extreme_logits(gain):
    check(head(6, 64, 1500, gain=gain))


def test_a_banned_span_of_the_vocabulary():
    p = head(4, 32, 2500, bias=True)
    p.bias[:1024] = -math.inf
    p.targets[:] = torch.tensor([1024, 2499, 2000, 7])
    check(p)


def test_more_spans_than_one_step_of_the_merge_takes():
    p = head(3, 16, 1024 * 34 + 5)
    p.hidden.mul_(torch.linspace(0.5, 2.0, 3)[:, None])
    p.weight[-1].copy_(p.hidden[1])  # the largest logit comes last
    one_tile = ScorerConfig(rows=16, ids=1024, inner=16, tiles=1, warps=4, stages=1)
    with mock.patch.object(scorer, "scorer_config", lambda *_, **__: one_tile):
        check(p)


def test_a_wide_softcap_keeps_the_digits_of_small_logits():
    """Log-probs of a peaked head hide lost digits; the largest logit itself does not."""
    p = head(6, 32, 40, gain=1e-3)
    truth = in_plain_torch(p, 1.0, 50.0, torch.float64)
    torch.testing.assert_close(score(p, 1.0, 50.0).top.double(), truth.top, rtol=1e-5, atol=0)


def test_no_row_one_row_and_more_than_a_block_of_rows():
    assert all(len(value) == 0 for value in score(head(0, 32, 50)))
    check(head(1, 32, 50))
    p = head(130, 32, 200)
    p.targets[:128] = IGNORE  # a block of dead rows
    check(p)


def test_a_row_of_nan_is_nan_and_alone():
    p = head(6, 64, 300)
    p.hidden[2, 5] = math.nan
    for value in score(p):
        assert value.isnan().tolist() == [row == 2 for row in range(6)]
    p = head(6, 64, 300)
    p.weight[77, 3], p.targets[4] = math.nan, IGNORE  # one logit of every row
    for value in score(p):
        assert value.isnan().tolist() == [row != 4 for row in range(6)]


def test_a_row_has_the_same_bits_in_every_batch():
    p, places = head(150, 64, 1200, bias=True), [149, 3, 128]
    whole = score(p)
    selected = score(Head(p.hidden[places], p.weight, p.targets[places], p.bias))
    with mock.patch.object(scorer, "ROWS_PER_LAUNCH", 128):
        in_two_launches = score(p)
    for one, few, two in zip(whole, selected, in_two_launches, strict=True):
        assert torch.equal(one[places], few) and torch.equal(one, two)


def test_rows_between_other_rows_have_the_bits_of_a_copy():
    p = head(6, 64, 200)
    wide = torch.full((6, 100), math.nan, dtype=torch.bfloat16)
    wide[:, 3:67] = p.hidden
    spread = p._replace(hidden=wide[:, 3:67], targets=p.targets.repeat_interleave(2)[::2])
    for one, other in zip(score(p), score(spread), strict=True):
        assert torch.equal(one, other)


def test_a_head_beyond_2_to_the_31_elements():
    p, apart = head(3, 16, 2100), 2**20 + 16
    memory = mmap.mmap(-1, 2 * 2100 * apart, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    far = torch.frombuffer(memory, dtype=torch.bfloat16).as_strided((2100, 16), (apart, 1))
    far.copy_(p.weight)
    for one, other in zip(score(p), score(p._replace(weight=far)), strict=True):
        assert torch.equal(one, other)
