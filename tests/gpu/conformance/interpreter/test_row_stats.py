"""Statistics of rows: the interpreted source, compared with the float64 definition."""

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
    chunk,
    definitions,
)
from tests.tolerances import VALUE_FACTOR
from wavalign_fast.ops import triton as backend
from wavalign_fast.ops.chunked.interface import RowChunk, RowStats


def stats_of(c: Chunk, scale: float = 1.0) -> RowStats:
    return backend.row_stats(RowChunk(*c, scale=scale, ignore_index=IGNORE))


def check(c: Chunk, scale: float) -> None:
    found = stats_of(c, scale)
    plain, truth = definitions(c, scale)
    for name in RowStats._fields:
        assert_close(getattr(found, name), getattr(plain, name), getattr(truth, name), VALUE_FACTOR)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_logits(kind, bias):
    check(chunk(2111, kind=kind, bias=bias), 0.7)


# One block is 1024 columns up to 4096, then 2048: less than one, exactly one, several, and a tail.
@pytest.mark.parametrize("vocab", [1, 2, 31, 257, 1000, 1024, 1025, 4003, 4099])
def test_every_length_of_a_row(vocab):
    check(chunk(vocab, bias=vocab % 2 == 1), 1.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_logits(dtype):
    check(chunk(600, dtype=dtype, bias=True), 1.3)


def test_no_row_and_one_row():
    assert all(len(value) == 0 for value in stats_of(chunk(31, rows=0, irregular=False)))
    check(chunk(31, rows=1, irregular=False), 1.0)


def test_a_row_has_the_same_bits_in_every_place():
    c = chunk(2111, rows=9, bias=True)
    places = [8, 0, 5]
    together, apart = stats_of(c, 0.7), stats_of(c.rows(places), 0.7)
    for whole, part in zip(together, apart, strict=True):
        torch.testing.assert_close(whole[places], part, rtol=0, atol=0, equal_nan=True)


def test_a_row_of_nan_is_nan_and_alone():
    c = chunk(2111)
    c.logits[0, 700] = math.nan
    c.logits[DEAD, :] = math.nan
    c.logits[5, :] = -math.inf  # every id banned: no distribution
    for value in stats_of(c):
        assert value.isnan().tolist() == [row in (0, BAD, BELOW, 5) for row in range(6)]
        assert value[DEAD] == 0


def test_bounds_hold_exactly():
    c = chunk(257, kind="one", irregular=False)
    c.logits[0, c.targets[0]] = 1e4
    found = stats_of(c)
    assert (found.logp <= 0).all() and (found.entropy >= 0).all()
    assert found.logp[0] == 0 and found.entropy[0] == 0


def test_rows_beyond_2_to_the_31_elements():
    """The second row starts 2^31 + 64 elements after the first, in memory without pages."""
    small = chunk(100, rows=2, irregular=False)
    pitch = 2**31 + 64
    memory = mmap.mmap(-1, 2 * (pitch + 128), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    flat = torch.frombuffer(memory, dtype=torch.bfloat16)
    far = flat.as_strided((2, 100), (pitch, 1))
    far.copy_(small.logits)
    found = stats_of(Chunk(far, small.targets, None))
    plain, truth = definitions(Chunk(far.clone(), small.targets, None), 1.0)
    for name in RowStats._fields:
        assert_close(getattr(found, name), getattr(plain, name), getattr(truth, name), VALUE_FACTOR)
