"""Gradients scaled in place: the interpreted source, compared with the definition."""

from unittest import mock

import pytest
import torch

pytest.importorskip("triton")

from wavalign_fast.ops import triton as backend
from wavalign_fast.ops.chunked import row_ops as definition
from wavalign_fast.ops.triton import scale

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def gradient_of(size, dtype, items=0):
    """``items`` is its place in memory, in elements beyond a multiple of 16 bytes."""
    whole = torch.randn(size + items, generator=torch.Generator().manual_seed(size))
    assert whole.data_ptr() % 16 == 0
    return whole.to(dtype)[items:]


def assert_scaled(gradient, factor):
    """In whichever memory it lies."""
    by = torch.tensor(factor)
    wanted = definition.scale_(gradient.clone(), by)
    assert backend.scale_(gradient, by) is gradient
    torch.testing.assert_close(gradient, wanted, rtol=0, atol=0, equal_nan=True)


# A block has 4096 elements: none, one, fewer than reach 16 bytes, one block, several blocks.
@pytest.mark.parametrize("size", [0, 1, 2, 31, 4095, 4096, 9001])
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_size_from_any_item_on(size, dtype):
    for items in (0, 1, 3):
        assert_scaled(gradient_of(size, dtype, items), 0.7)


def test_any_shape():
    assert_scaled(torch.randn(3, 5, 7), -2.0)
    assert_scaled(torch.randn(()), 0.3)


@pytest.mark.parametrize("programs", [1, 2, 3])
def test_more_blocks_than_programs(programs):
    for blocks in (6, 7):
        with mock.patch.object(scale, "SCALE_PROGRAMS", programs):
            assert_scaled(gradient_of(4096 * blocks + 5, torch.bfloat16, 1), 0.7)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_factor_of_one_touches_nothing(dtype):
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int16)  # every NaN of 16 bits among them
    gradient = bits.clone().view(dtype)[:-1]
    for one in (torch.tensor(1.0), torch.tensor(1.0, dtype=torch.bfloat16)):
        backend.scale_(gradient, one)
    assert torch.equal(gradient.view(torch.int16), bits[: gradient.nbytes // 2])
    assert_scaled(gradient_of(9, dtype), 1.0 + 2.0**-23)


@pytest.mark.parametrize("factor", [torch.nan, torch.inf, -torch.inf, 0.0, 3e38, 1e-41])
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_factor_and_no_value_is_lost(dtype, factor):
    special = [0.0, -0.0, 1.0, -2.5, torch.inf, -torch.inf, torch.nan, 3e4, 6e-8, 2.0**-24]
    assert_scaled(torch.tensor(2 * special).to(dtype), factor)


@pytest.mark.parametrize(
    ("gradient", "factor", "message"),
    [
        (torch.zeros(3, 4).T, torch.ones(()), "contiguous"),
        (torch.zeros(3).double(), torch.ones(()), "float64"),
        (torch.zeros(3), torch.ones(1), r"factor: got \(1,\)"),
        (torch.zeros(3), torch.ones((), device="meta"), "on meta, want .* on cpu"),
    ],
)
def test_what_cannot_be_scaled_is_refused(gradient, factor, message):
    with pytest.raises(ValueError, match=message):
        backend.scale_(gradient, factor)
