"""Choosing a token from logits: the inverse of the CDF, by torch and by the C++ op."""

import math

import pytest
import torch

from wavalign_fast.rollout import choice
from wavalign_fast.rollout.choice import NO_TOKEN, choose_tokens, choose_with_logps

NAN, INF = math.nan, math.inf


@pytest.fixture(params=["one sum", "blocks", "op"], autouse=True)
def way(request, monkeypatch):
    if request.param == "op":
        assert choice.kernels_take(torch.zeros(1)), "the C++ kernels are missing"
        return
    monkeypatch.setattr(choice, "kernels_take", lambda _: False)
    monkeypatch.setattr(choice, "BLOCKED_SIZE", 10**9 if request.param == "one sum" else 1)


def test_a_banned_id_is_never_chosen():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(3, -1)
    uniform = torch.tensor([0.0, 0.5, 1.0 - 2.0**-53], dtype=torch.float64)
    assert choose_tokens(logits, 1.0, uniform).tolist() == [1, 3, 3]


def test_rare_ids_of_a_large_vocabulary_keep_their_probability():
    # Each id but the first has a share of 1 in 500 million; a float32 sum merges thirty of them.
    logits = torch.full((1, 200_000), -20.0)
    logits[0, 0] = 0.0
    probability = torch.softmax(logits, -1)[0].tolist()
    total = math.fsum(probability)
    for token in (1, 7_777, 100_000, 199_999):
        middle = (math.fsum(probability[:token]) + probability[token] / 2) / total
        uniform = torch.tensor([middle], dtype=torch.float64)
        assert choose_tokens(logits, 1.0, uniform).item() == token


@pytest.mark.parametrize("temperature", [1e-30, 1e-3])
def test_a_low_temperature_is_nearly_greedy_and_does_not_overflow(temperature):
    logits = torch.tensor([[9.0, -torch.inf, 11.0, 10.0], [-3e38, -2e38, -1e38, -torch.inf]])
    uniform = torch.tensor([0.9, 0.1], dtype=torch.float64)
    assert choose_tokens(logits, temperature, uniform).tolist() == [2, 2]


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    "row", [[1.0, NAN, 2.0], [NAN] * 3, [-INF] * 3, [1.0, INF, 2.0], [INF, -INF, NAN], [INF] * 3]
)
def test_logits_that_are_no_distribution_choose_no_id(row, temperature):
    logits = torch.tensor([[0.0, 30.0, 0.0], row, [30.0, 0.0, -INF]])
    uniform = torch.tensor([0.3, 0.3, 0.3], dtype=torch.float64) if temperature else None
    assert choose_tokens(logits, temperature, uniform).tolist() == [
        1,
        NO_TOKEN,
        0,
    ]


def random_logits(case: int) -> torch.Tensor:
    """Logits [4, V] of many shapes: flat, steep, banned ids, long stretches of next to nothing."""
    make = torch.Generator().manual_seed(case)
    size = [1, 2, 511, 512, 513, 1024, 1500][case % 7]
    logits = torch.randn(4, size, generator=make) * [0.1, 1.0, 10.0, 60.0][case % 4]
    banned = torch.rand(4, size, generator=make) < [0.0, 0.5, 0.99][case % 3]
    logits[banned] = -INF
    logits[:, int(torch.randint(size, (), generator=make))] = 0.0
    return logits


@pytest.mark.parametrize("case", range(21))
def test_the_id_is_the_first_whose_exact_sum_is_above_the_number(case):
    """Against exact sums, for random numbers and for those beside the border of an id."""
    logits = random_logits(case)
    temperature = [1.0, 0.7][case % 2]
    make = torch.Generator().manual_seed(case)
    weights = ((logits.double() - logits.double().amax(-1, keepdim=True)) / temperature).exp()
    for row, (line, own) in enumerate(zip(logits, weights, strict=True)):
        share = own.cumsum(0) / own.sum()
        borders = share[torch.randint(len(share), (8,), generator=make)]
        numbers = [0.0, 1 - 2.0**-53, *torch.rand(20, generator=make).tolist()]
        for border in borders.tolist():
            numbers += [border, math.nextafter(border, 0), border - 1e-9, border + 1e-9]
        uniform = torch.tensor([it for it in numbers if 0 <= it < 1], dtype=torch.float64)
        chosen = choose_with_logps(line.expand(len(uniform), -1), temperature, uniform)
        assert bool((line[chosen.ids] > -INF).all()), f"row {row}: an id of probability 0"
        assert bool((own[chosen.ids] > 1e-50).all()), f"row {row}: an id that float32 rounds to 0"
        after = share[chosen.ids]
        before = torch.where(chosen.ids > 0, share[(chosen.ids - 1).clamp(min=0)], 0.0)
        # A weight has float32's rounding, and so do sums of them.
        assert bool((before <= uniform + 2e-7).all()) and bool((uniform <= after + 2e-7).all())
        wanted = own[chosen.ids].log() - own.sum().log()
        torch.testing.assert_close(chosen.logps.double(), wanted, atol=2e-6, rtol=2e-7)


def test_no_way_depends_on_the_rows_beside_it():
    logits = torch.randn(6, 1300, generator=torch.Generator().manual_seed(0)) * 3
    uniform = torch.linspace(0, 0.999, 6, dtype=torch.float64)
    whole = choose_with_logps(logits, 1.0, uniform)
    for row in range(6):
        alone = choose_with_logps(logits[row : row + 1], 1.0, uniform[row : row + 1])
        assert alone.ids == whole.ids[row] and alone.logps == whole.logps[row]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_widened_not_rounded(dtype):
    logits = (torch.randn(5, 700, generator=torch.Generator().manual_seed(0)) * 2).to(dtype)
    uniform = torch.linspace(0, 0.999, 5, dtype=torch.float64)
    found = choose_with_logps(logits, 0.8, uniform)
    wanted = choose_with_logps(logits.float(), 0.8, uniform)
    assert torch.equal(found.ids, wanted.ids)
    torch.testing.assert_close(found.logps, wanted.logps, atol=2e-6, rtol=0)


def test_sums_added_in_parallel_are_put_in_order():
    """What a GPU's sum may look like: up at a weight of 0, and down by a rounding error."""
    weights = torch.tensor([[0.0, 0.5, 0.0, 0.0, 0.25, 0.0]])
    step = 2.0**-53
    sums = torch.tensor([[step, 0.5, 0.5 + 2 * step, 0.5 - step, 0.75, 0.75 + step]]).double()
    ordered = choice._in_order(sums.expand(4, -1), weights.expand(4, -1))
    target = torch.tensor([0.0, 0.5, 0.5 + step, 0.74], dtype=torch.float64)
    assert choice._search(ordered, target)[:, 0].tolist() == [1, 4, 4, 4]
