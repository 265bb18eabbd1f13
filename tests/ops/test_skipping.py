"""Skipping: its error is bounded, it really skips, and it changes no value."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops.problems import Problem
from wavalign_fast.ops import LossOptions, linear_logprob

TILE = 256
FP32_NOISE = 2e-6
"""Relative to the scale of a gradient: the order of summation differs."""


def modal(
    n: int, h: int, v: int, dtype: torch.dtype, *, apart: float, seed: int = 0
) -> Problem:  # fmt: skip
    """Two modalities; rows and ids of one modality have the same sign in the last coordinate."""
    g = torch.Generator().manual_seed(seed)
    hidden, weight = torch.randn(n, h, generator=g), torch.randn(v, h, generator=g) / h**0.5
    targets = torch.randint(0, v, (n,), generator=g)
    hidden[:, -1] = torch.where(targets < v // 2, apart, -apart)
    weight[:, -1] = torch.where(torch.arange(v) < v // 2, 1.0, -1.0)
    targets[torch.rand(n, generator=g) < 0.1] = -100
    return Problem(hidden.to(dtype), weight.to(dtype), targets, None)


def gradients(
    p: Problem, g: torch.Tensor, tolerance: float, *, budget: int | None = None, terms: str = "logp"
) -> tuple[torch.Tensor, ...]:
    leaves = p.hidden.clone().requires_grad_(), p.weight.clone().requires_grad_()
    bias = torch.zeros(p.weight.shape[0], requires_grad=True)
    options = LossOptions(backend="cpu", skip_tolerance=tolerance, memory_budget=budget)
    out = linear_logprob(*leaves, p.targets, bias=bias, with_entropy=True, options=options)
    loss = sum((getattr(out, term) * g).sum() for term in terms.split())
    return (*out[:3], *torch.autograd.grad(loss, (*leaves, bias)))


def assert_within_bound(p: Problem, g: torch.Tensor, tolerance: float, budget: int | None) -> None:
    exact, skipped = (gradients(p, g, t, budget=budget) for t in (0.0, tolerance))
    for a, b in zip(exact[:3], skipped[:3], strict=True):
        assert torch.equal(a, b)
    longest = p.weight.norm(dim=1).max()
    live = p.targets != -100
    per_row = (exact[3] - skipped[3]).norm(dim=1)
    allowed = g.abs() * (tolerance + FP32_NOISE) * longest
    assert (per_row <= allowed).all(), (per_row / allowed.clamp(min=1e-30)).max()
    whole = (exact[4] - skipped[4]).norm()
    assert whole <= (tolerance + FP32_NOISE) * (g.abs() * p.hidden.norm(dim=1))[live].sum()
    assert (exact[5] - skipped[5]).abs().sum() <= (tolerance + FP32_NOISE) * g.abs()[live].sum()


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 300), h=st.integers(2, 24), v=st.integers(2, 2000),
    apart=st.sampled_from([0.0, 1.0, 4.0, 9.0]), seed=st.integers(0, 99),
    tolerance=st.sampled_from([1e-6, 1e-3, 0.1, 0.9]), budget=st.sampled_from([None, 0, 50_000]),
)  # fmt: skip
def test_error_stays_within_the_bound(n, h, v, apart, seed, tolerance, budget):
    p = modal(n, h, v, torch.float32, apart=apart, seed=seed)
    g = torch.randn(n, generator=torch.Generator().manual_seed(seed + 1))
    assert_within_bound(p, g, tolerance, budget)


@pytest.mark.parametrize("share, left_out", [(0.98, True), (1.02, False), (2.0, False)])
@pytest.mark.parametrize("tolerance", [0.3, 0.01])
def test_error_stays_within_the_bound_when_it_comes_close(
    tolerance: float, share: float, left_out: bool
) -> None:
    """The remaining mass, close to the tolerance, lies on one id with the longest row of W."""
    v, n = 4 * TILE, 40
    weight = torch.zeros(v, 2)
    weight[3 * TILE + 5] = torch.tensor([0.0, 50.0])
    bias_like = torch.full((v,), -60.0)
    targets = torch.arange(n) % 7
    bias_like[:7] = 0.0
    mass = share * tolerance
    bias_like[3 * TILE + 5] = torch.log(torch.tensor(7 * mass / (1 - mass)))
    # The second coordinate of hidden is 0, so the first one alone makes the logits.
    weight[:, 0] = bias_like
    hidden = torch.tensor([[1.0, 0.0]]).repeat(n, 1)
    p = Problem(hidden, weight, targets, None)
    g = torch.linspace(-3, 3, n)
    assert_within_bound(p, g, tolerance, None)
    exact, skipped = (gradients(p, g, t)[3] for t in (0.0, tolerance))
    reached = (exact - skipped).norm(dim=1) / (g.abs() * tolerance * weight.norm(dim=1).max())
    assert (reached[g != 0] > 0.6).all() if left_out else (reached[g != 0] < 0.01).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_skips_the_other_modality(dtype: torch.dtype) -> None:
    v = 8 * TILE
    p = modal(300, 16, v, dtype, apart=20.0)
    # Without skipping, text rows put a little mass on the ids of the other modality.
    text = Problem(p.hidden, p.weight, torch.where(p.targets < v // 2, p.targets, -100), None)
    g = torch.ones(300)
    exact, skipped = gradients(text, g, 0.0), gradients(text, g, 1e-6)
    assert exact[4][v // 2 :].abs().sum() > 0
    assert torch.equal(skipped[4][v // 2 :], torch.zeros(v // 2, 16, dtype=dtype))
    assert torch.equal(skipped[5][v // 2 :], torch.zeros(v // 2))
    assert (exact[4][: v // 2] - skipped[4][: v // 2]).abs().max() <= 1e-2 * exact[4].abs().max()


def test_bits_of_a_row_depend_on_that_row_alone() -> None:
    p = modal(301, 16, 1500, torch.float32, apart=4.0)
    g = torch.randn(301, generator=torch.Generator().manual_seed(3))
    before = torch.get_num_threads()
    whole = gradients(p, g, 1e-3)
    try:
        for rows, threads, budget in (
            ([7], 1, None), (list(range(40, 290)), 2, 0), (list(range(0, 301, 3))[::-1], 3, 90_000),
        ):  # fmt: skip
            torch.set_num_threads(threads)
            part = Problem(p.hidden[rows], p.weight, p.targets[rows], None)
            got = gradients(part, g[rows], 1e-3, budget=budget)
            for a, b in zip(got[:4], whole[:4], strict=True):
                assert torch.equal(a, b[rows])
    finally:
        torch.set_num_threads(before)


def test_rows_without_gradient_change_nothing() -> None:
    p = modal(300, 16, 1500, torch.float32, apart=4.0)
    g = torch.randn(300, generator=torch.Generator().manual_seed(3))
    g[::3] = 0.0
    whole = gradients(p, g, 1e-3)[3]
    kept = torch.arange(300)[g != 0]
    part = gradients(Problem(p.hidden[kept], p.weight, p.targets[kept], None), g[kept], 1e-3)[3]
    assert torch.equal(whole[kept], part)
    assert torch.equal(whole[::3], torch.zeros_like(whole[::3]))


def test_an_entropy_gradient_stays_exact() -> None:
    p = modal(80, 16, 1500, torch.float32, apart=4.0)
    g = torch.ones(80)
    exact, skipped = (gradients(p, g, t, terms="logp entropy") for t in (0.0, 0.5))
    scale = exact[3].abs().max()
    assert (exact[3] - skipped[3]).abs().max() <= FP32_NOISE * scale


def test_a_row_with_nan_skips_nothing() -> None:
    p = modal(20, 8, 1500, torch.float32, apart=4.0)
    hidden = p.hidden.clone()
    hidden[3] = torch.nan
    targets = p.targets.clone()
    targets[3] = 5
    out = gradients(Problem(hidden, p.weight, targets, None), torch.ones(20), 0.5)
    assert torch.isnan(out[0][3])
    assert torch.isnan(out[4]).any(dim=1).all()  # all rows of dW, as without skipping
