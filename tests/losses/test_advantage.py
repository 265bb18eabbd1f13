"""Group-relative advantages: standard scores, missing and equal rewards."""

import pytest
import torch

import wavalign_fast as wf

NAN = float("nan")


def test_advantages_are_standard_scores_within_the_group() -> None:
    rewards = torch.tensor([[1.0, 2.0, 3.0, 6.0], [5.0, NAN, 1.0, NAN]])
    got = wf.group_advantages(rewards)
    first = rewards[0]
    want = (first - first.mean()) / (first.std(unbiased=False) + 1e-4)
    torch.testing.assert_close(got[0], want)
    torch.testing.assert_close(got[1], torch.tensor([2 / 2.0001, 0.0, -2 / 2.0001, 0.0]))
    sample = wf.group_advantages(rewards, std="sample")
    torch.testing.assert_close(sample[0], (first - first.mean()) / (first.std() + 1e-4))


@pytest.mark.parametrize("std", ["population", "sample"])
@pytest.mark.parametrize("row", [[0.1, 0.1, 0.1], [NAN, 2.0, NAN], [NAN, NAN, NAN], [4.0]], ids=str)
def test_an_uninformative_group_has_no_advantage(row: list[float], std: str) -> None:
    assert torch.equal(wf.group_advantages(torch.tensor([row]), std=std), torch.zeros(1, len(row)))


@pytest.mark.parametrize("eps", [NAN, float("inf"), -1e-4, "1e-4", None])
def test_an_eps_that_is_not_a_finite_number_is_refused(eps) -> None:
    with pytest.raises(ValueError, match=r"eps: got .*, want >= 0 and finite"):
        wf.group_advantages(torch.ones(1, 2), eps=eps)


def test_rounding_of_a_mean_gives_no_advantage() -> None:
    row = torch.full((1, 3), 0.1, dtype=torch.float64)
    assert row.sum() / 3 != row[0, 0]
    assert torch.equal(wf.group_advantages(row), torch.zeros_like(row))
