"""Advantages and the mixture against losses/advantage.py and losses/gate.py."""

import math

import pytest
import torch

from wavalign_fast.losses.advantage import group_advantages
from wavalign_fast.losses.gate import MixingGate

from .kernels import GroupParams, Kernels, MixParams

GATE = {"lambda_max": 0.8, "slope": 5.0, "threshold": 3.0, "variance_scale": 4.0}


def rewards(groups: int, size: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(groups + size)
    values = torch.randint(1, 6, (groups, size), generator=g) + torch.rand(
        groups, size, generator=g
    ).round(decimals=1)
    values[torch.rand(groups, size, generator=g) < 0.2] = math.nan
    for group, value in enumerate((math.nan, 0.1, 1e4 + 0.1)[: max(0, groups - 1)]):
        values[group] = value  # no reward; all equal, where a rounded mean need not be
    return values


def statistics(kernels: Kernels, values: torch.Tensor, std: str = "population"):
    groups, size = values.shape
    params = GroupParams(groups=groups, size=size, eps=1e-4, sample_std=std == "sample", **GATE)
    nothing = {"advantages": torch.full_like(values, -9.0), "sums": torch.full((6,), -9.0)}
    buffers = {"rewards": values} | nothing
    result = kernels.launch("group_statistics", "group_statistics", params, buffers)
    return result.buffers["advantages"], result.buffers["sums"]


def mixed(kernels: Kernels, sums: torch.Tensor, previous: float | None, ema: float = 0.9):
    params = MixParams(lambda_max=GATE["lambda_max"], ema=ema)
    buffers = {
        "sums": sums,
        "previous": torch.tensor([-1.0 if previous is None else previous]),
        "has_previous": torch.tensor([previous is not None]),
        "rl_weight": torch.full((1,), -9.0),
        "parts": torch.full((5,), -9.0),
    }
    result = kernels.launch("group_statistics", "mix", params, buffers)
    return result.buffers["rl_weight"], result.buffers["parts"]


@pytest.mark.parametrize("std", ["population", "sample"])
@pytest.mark.parametrize(("groups", "size"), [(1, 1), (1, 2), (5, 8), (4, 33), (100, 4), (3, 0)])
def test_advantages_are_the_released_ones_bit_for_bit(
    kernels: Kernels, groups: int, size: int, std: str
) -> None:
    values = rewards(groups, size)
    found, _ = statistics(kernels, values, std)
    assert torch.equal(found, group_advantages(values, std=std))


@pytest.mark.parametrize("previous", [None, 0.3, 0.79])
@pytest.mark.parametrize(("groups", "size"), [(1, 4), (5, 8), (100, 4), (0, 3)])
def test_the_mixture_is_that_of_the_gate(
    kernels: Kernels, groups: int, size: int, previous: float | None
) -> None:
    values = rewards(groups, size)
    rl_weight, parts = mixed(kernels, statistics(kernels, values)[1], previous)
    wanted, names = MixingGate(initial=previous).step(values)
    torch.testing.assert_close(rl_weight[0], wanted, rtol=2e-6, atol=1e-7)
    names.pop("adaptive_lambda")
    torch.testing.assert_close(parts, torch.stack(list(names.values())), rtol=2e-6, atol=1e-7)


def test_no_group_with_a_reward_keeps_the_mixture(kernels: Kernels) -> None:
    nothing = torch.zeros(6)
    assert mixed(kernels, nothing, 0.25)[0].item() == 0.25
    assert mixed(kernels, nothing, None)[0].item() == 0.0


def test_the_mixture_stays_within_its_bounds(kernels: Kernels) -> None:
    sums = torch.tensor([0.8, 1, 1, 5, 4, 1.0])
    assert mixed(kernels, sums, 5.0)[0].item() == pytest.approx(0.8)
