"""The kernels' own functions of one number, to the last digits."""

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl

from wavalign_fast.ops.triton.kernels.scorer import capped
from wavalign_fast.ops.triton.kernels.softmax import expm1


@triton.jit
def each_expm1(values, out, N: tl.constexpr):
    lanes = tl.arange(0, N)
    tl.store(out + lanes, expm1(tl.load(values + lanes)))


@triton.jit
def each_capped(values, out, cap, N: tl.constexpr):
    lanes = tl.arange(0, N)
    tl.store(out + lanes, capped(tl.load(values + lanes), cap))


def both_signs(largest: float) -> torch.Tensor:
    """512 numbers of every size from 1e-9 to ``largest``."""
    sizes = torch.logspace(-9, torch.tensor(largest).log10().item(), 256)
    return torch.cat([-sizes, sizes])


def test_expm1_is_right_to_a_few_roundings_at_every_size():
    x = both_signs(20.0)
    x[0] = 0.0
    out = torch.empty(512)
    each_expm1[(1,)](x, out, N=512)
    torch.testing.assert_close(out.double(), x.double().expm1(), rtol=4e-7, atol=0)


def test_a_softcap_is_right_to_a_few_roundings_at_every_size():
    x = both_signs(1e4)
    x[:2] = torch.tensor([torch.inf, -torch.inf])
    out = torch.empty(512)
    each_capped[(1,)](x, out, 30.0, N=512)
    wanted = 30.0 * torch.tanh(x.double() / 30.0)
    torch.testing.assert_close(out.double(), wanted, rtol=1e-6, atol=0)
