"""Gradients scaled in place by a factor in memory."""

import math

import pytest
import torch

from tools.cuda_on_cpu.cases import Shifted
from tools.cuda_on_cpu.launcher import LaunchError
from wavalign_fast.ops.chunked import row_ops as definition

from .kernels import DTYPES, Kernels, ScaleParams

FACTOR = 0.7
TURN = 512 * 256 * 4 * 8
"""Items in bf16 that the largest grid processes before any thread starts a second batch."""


def gradient_of(size: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(size)).to(dtype)


def scaled(
    kernels: Kernels, gradient: torch.Tensor, factor: float, *, shift: int = 0
) -> torch.Tensor:
    """``shift`` is the gradient's place in memory, in bytes beyond 16."""
    params = ScaleParams(dtype=DTYPES[gradient.dtype], size=len(gradient))
    buffers = {"gradient": Shifted(gradient, shift), "factor": torch.tensor(factor)}
    return kernels.launch("scale", "scale", params, buffers).buffers["gradient"]


def assert_scaled(found: torch.Tensor, gradient: torch.Tensor, factor: float) -> None:
    wanted = definition.scale_(gradient.clone(), torch.tensor(factor))
    torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)


# Nothing, less than a vector, vectors without and with a remainder, a block, several blocks.
@pytest.mark.parametrize("size", [0, 1, 5, 8, 31, 2048, 9001])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_size_from_any_item_on(kernels: Kernels, size: int, dtype: torch.dtype) -> None:
    gradient = gradient_of(size, dtype)
    for items in (0, 1, 3):
        shift = items * dtype.itemsize
        found = scaled(kernels.on("addresses"), gradient, FACTOR, shift=shift)
        assert_scaled(found, gradient, FACTOR)


@pytest.mark.parametrize("variant", ["accesses", "races"])
def test_each_item_is_read_and_written_once(kernels: Kernels, variant: str) -> None:
    device = kernels.on(variant)
    gradient = gradient_of(9001 if variant == "accesses" else 1000, torch.bfloat16)
    assert_scaled(scaled(device, gradient, FACTOR, shift=6), gradient, FACTOR)
    if variant == "accesses":
        assert device.last.read["gradient"] == 2 * len(gradient)
        assert device.last.written["gradient"] == 2 * len(gradient)


def test_more_than_one_turn_of_the_largest_grid(kernels: Kernels) -> None:
    gradient = gradient_of(TURN + 8 * 1000 + 3, torch.bfloat16)
    assert_scaled(scaled(kernels, gradient, FACTOR), gradient, FACTOR)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_factor_of_one_touches_nothing(kernels: Kernels, dtype: torch.dtype) -> None:
    device = kernels.on("accesses")
    gradient = gradient_of(9001, dtype)
    scaled(device, gradient, 1.0, shift=dtype.itemsize)
    assert device.last.launches == 1
    assert device.last.read["factor"] > 0
    assert device.last.read["gradient"] == device.last.written["gradient"] == 0
    for near in (math.nextafter(1.0, 2.0), 1.0 + 2.0**-23, 1.0 - 2.0**-24, -1.0):
        scaled(device, gradient, near)
        rounds_to_one = torch.tensor(near) == 1
        written = device.last.written["gradient"]
        assert written == (0 if rounds_to_one else gradient.nbytes)


@pytest.mark.parametrize("factor", [math.nan, math.inf, -math.inf, 0.0, 3e38, 1e-41])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_factor_and_no_value_is_lost(
    kernels: Kernels, dtype: torch.dtype, factor: float
) -> None:
    special = [0.0, -0.0, 1.0, -2.5, math.inf, -math.inf, math.nan, 3e4, 6e-8, 2.0**-24]
    gradient = torch.tensor(2 * special).to(dtype)
    found = scaled(kernels, gradient, factor)
    assert_scaled(found, gradient, factor)
    zeros = found == 0
    assert torch.equal(found[zeros].signbit(), (gradient[zeros].signbit()))


@pytest.mark.parametrize(
    "change", [{"size": -1}, {"dtype": 7}, {"gradient": Shifted(torch.zeros(8).bfloat16(), 1)}]
)
def test_what_cannot_be_scaled_is_refused(kernels: Kernels, change: dict) -> None:
    buffers = {"gradient": change.get("gradient", torch.zeros(8)), "factor": torch.tensor(2.0)}
    params = ScaleParams(dtype=change.get("dtype", 1), size=change.get("size", 8))
    with pytest.raises(LaunchError):
        kernels.launch("scale", "scale", params, buffers)
