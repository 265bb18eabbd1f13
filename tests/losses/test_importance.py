"""Ratios to the policy that sampled: by token and by sequence, clipped, and very large."""

import math

import pytest
import torch

import wavalign_fast as wf
from tests.losses.formula import LAYOUT
from wavalign_fast.losses.policy import linear_beyond
from wavalign_fast.ops import LogProb

LEVELS = ["token", "sequence"]
GROUP, LENGTH = 4, 5
REWARDS = torch.tensor([[1.0, 2.0, 4.0, 5.0]])
INF = math.inf


def objective(**settings) -> wf.HybridObjective:
    return wf.HybridObjective(LAYOUT, **({"policy_scope": "all", "gate": 1.0} | settings))


def rollouts(old: torch.Tensor | None = None, ref: torch.Tensor | None = None) -> wf.HybridBatch:
    """One group; every rollout has LENGTH text tokens."""
    row = torch.arange(GROUP).repeat_interleave(LENGTH)
    tables = [None if table is None else table.flatten() for table in (ref, old)]
    return wf.HybridBatch(torch.ones_like(row), row, torch.full_like(row, -1), REWARDS, *tables)


def step(batch: wf.HybridBatch, logp: torch.Tensor, **settings) -> wf.HybridOutput:
    """The loss from given log-probs, so that a test can choose the ratio."""
    made = objective(**settings)
    scores = LogProb(logp.flatten(), None, logp.flatten())
    return made.combine(batch, made.token_weights(batch), scores, torch.tensor(1.0))


def logps(seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return -0.1 - 2 * torch.rand(GROUP, LENGTH, generator=g, dtype=torch.float64)


def trl_loss(logp, old, ref, *, level, loss_type, low, high, beta) -> torch.Tensor:
    """What TRL 1.16 computes from [B, T] log-probs; here every token is a completion token."""
    advantages = wf.group_advantages(REWARDS).double().reshape(-1, 1)
    log_weights = logp - old
    if level == "sequence":
        log_weights = log_weights.mean(-1, keepdim=True)
    weights = log_weights.exp()
    bounded = weights.clamp(1 - low, 1 + high)
    terms = -torch.minimum(weights * advantages, bounded * advantages)
    terms = terms + beta * ((ref - logp).exp() - (ref - logp) - 1)
    return terms.mean(-1).mean() if loss_type == "grpo" else terms.mean()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss_type, normalisation", [("grpo", "sequence"), ("bnpo", "token")])
def test_it_is_trls_formula(level, loss_type, normalisation) -> None:
    logp = logps(0).requires_grad_()
    old, ref = logps(1), logps(2)
    want = trl_loss(logp, old, ref, level=level, loss_type=loss_type, low=0.2, high=0.28, beta=0.1)
    out = step(
        rollouts(old, ref), logp, clip=(0.2, 0.28), text_kl=0.1,
        importance_sampling_level=level, normalisation=normalisation,
    )  # fmt: skip
    torch.testing.assert_close(out.loss, want, rtol=1e-12, atol=1e-12)
    got, truth = (torch.autograd.grad(loss, logp)[0] for loss in (out.loss, want))
    torch.testing.assert_close(got, truth, rtol=1e-12, atol=1e-12)


def test_a_sequence_has_one_ratio_over_the_weighted_tokens_in_scope() -> None:
    """Rows of a text and a speech token: weights 1 and 3, then text alone."""
    row = torch.arange(2).repeat_interleave(2)
    gaps = torch.tensor([0.4, -0.8, 0.1, 0.5], dtype=torch.float64)
    logp = torch.full((4,), -3.0, dtype=torch.float64)
    batch = wf.HybridBatch(
        torch.tensor([1, 13, 1, 13]), row, torch.full_like(row, -1), torch.tensor([[1.0, 3.0]]),
        old_logp=logp - gaps,
    )  # fmt: skip
    a = wf.group_advantages(batch.rewards)[0].tolist()
    for scope, first, second in (
        ("all", (0.4 - 3 * 0.8) / 4, (0.1 + 3 * 0.5) / 4),
        ("text", 0.4, 0.1),
        ("speech", -0.8, 0.5),
    ):
        out = step(
            batch, logp, policy_scope=scope, speech_weight=3.0, importance_sampling_level="sequence"
        )
        want = -(a[0] * math.exp(first) + a[1] * math.exp(second)) / 2
        assert out.loss.item() == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    "ratio, advantage_sign, clipped, side",
    [
        (1.25, 1, False, None), (1.35, 1, True, "high"), (0.5, 1, False, None),
        (0.85, -1, False, None), (0.75, -1, True, "low"), (1.5, -1, False, None),
    ],
)  # fmt: skip
def test_each_bound_clips_one_sign_of_advantage(
    level, ratio, advantage_sign, clipped, side
) -> None:
    """clip=(0.2, 0.3) bounds the ratio of a good token above, that of a bad one below."""
    rewards = torch.tensor([[3.0 + advantage_sign, 3.0]])
    row = torch.zeros(3, dtype=torch.long)
    logp = torch.full((3,), -1.0, dtype=torch.float64, requires_grad=True)
    batch = wf.HybridBatch(row + 1, row, row - 1, rewards, old_logp=logp.detach() - math.log(ratio))
    out = step(batch, logp, clip=(0.2, 0.3), importance_sampling_level=level)
    (gradient,) = torch.autograd.grad(out.loss, logp)
    advantage = wf.group_advantages(rewards)[0, 0].item()
    bound = {None: ratio, "high": 1.3, "low": 0.8}[side]
    assert out.loss.item() == pytest.approx(-bound * advantage / 2, rel=1e-12)
    want = 0.0 if clipped else -ratio * advantage / 6
    torch.testing.assert_close(gradient, torch.full_like(gradient, want))
    for name in ("low", "high"):
        assert out.metrics[f"clip_ratio/{name}_mean"] == (name == side)
    assert out.metrics["clip_ratio/region_mean"] == clipped
    assert out.metrics["zero_gradient_rows"] == 3 * clipped


def test_clip_fractions_count_tokens_or_rollouts() -> None:
    """The rows have one and three tokens, and the short one is clipped."""
    row = torch.tensor([0, 1, 1, 1])
    batch = wf.HybridBatch(
        torch.ones_like(row), row, torch.full_like(row, -1), torch.tensor([[5.0, 1.0, 3.0]]),
        old_logp=torch.tensor([-5.0, -1.0, -1.0, -1.0]),
    )  # fmt: skip
    logp = torch.full((4,), -1.0, dtype=torch.float64)
    for level, fraction in (("token", 1 / 4), ("sequence", 1 / 2)):
        metrics = step(batch, logp, clip=0.2, importance_sampling_level=level).metrics
        assert metrics["clip_ratio/high_mean"].item() == pytest.approx(fraction)


@pytest.mark.parametrize("clip", [None, 0.0])
@pytest.mark.parametrize("recorded", [False, True])
def test_on_policy_both_levels_are_the_same(recorded, clip) -> None:
    """ρ is exactly 1 and carries the gradient -A/(rollouts · tokens), recorded or not."""
    logp = logps(0).requires_grad_()
    batch = rollouts(logp.detach() if recorded else None)
    advantages = wf.group_advantages(REWARDS).double()
    for level in LEVELS:
        out = step(batch, logp, clip=clip, importance_sampling_level=level)
        assert out.loss.item() == pytest.approx(-advantages.mean().item(), abs=1e-15)
        (gradient,) = torch.autograd.grad(out.loss, logp)
        want = -advantages.reshape(-1, 1).expand(GROUP, LENGTH) / (GROUP * LENGTH)
        torch.testing.assert_close(gradient, want, rtol=1e-12, atol=0)
        assert out.metrics["clip_ratio/region_mean"] == 0


@pytest.mark.parametrize("backend, dtype", [("reference", torch.float64), ("cpu", torch.bfloat16)])
def test_recorded_log_probs_give_a_sequence_ratio_of_exactly_one(backend, dtype) -> None:
    hidden, weight = torch.randn(GROUP * LENGTH, 6).to(dtype), torch.randn(24, 6).to(dtype)
    made = objective(
        clip=0.0, importance_sampling_level="sequence", options=wf.LossOptions(backend=backend)
    )
    first = made(hidden, weight, rollouts())
    again = made(hidden, weight, rollouts(first.logp))
    assert torch.equal(first.loss, again.loss)
    assert again.metrics["clip_ratio/region_mean"] == 0


@pytest.mark.parametrize("function", [torch.exp, torch.expm1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_exponential_continues_as_its_tangent(function, dtype) -> None:
    below = torch.linspace(-60, 20, 999, dtype=dtype)
    assert torch.equal(linear_beyond(function, below), function(below))
    beyond = torch.tensor([20.0, 20.5, 25.0, 100.0, 1e6], dtype=dtype, requires_grad=True)
    values = linear_beyond(function, beyond)
    at_20 = function(torch.tensor(20.0, dtype=dtype))
    torch.testing.assert_close(values, at_20 + math.exp(20) * (beyond - 20))
    assert (values.diff() > 0).all()
    (slope,) = torch.autograd.grad(values.sum(), beyond)
    torch.testing.assert_close(slope, torch.full_like(slope, math.exp(20)))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("gap", [30.0, 800.0, 1e5, -800.0, -1e5])
@pytest.mark.parametrize("clip", [None, (0.2, 0.3)])
def test_no_gap_to_the_old_policy_overflows(gap, level, clip) -> None:
    logp = torch.full((GROUP, LENGTH), -2.0, dtype=torch.float64, requires_grad=True)
    out = step(
        rollouts(torch.full_like(logp, -2.0 - gap)), logp, clip=clip,
        importance_sampling_level=level,
    )  # fmt: skip
    (gradient,) = torch.autograd.grad(out.loss, logp)
    assert torch.isfinite(out.loss) and torch.isfinite(gradient).all()
    assert torch.isfinite(out.loss.float())
    if gap > 0:
        # Bad rows become less likely; good ones more, unless they are clipped.
        assert (gradient[:2] > 0).all()
        assert (gradient[2:] < 0).all() if clip is None else not gradient[2:].any()


@pytest.mark.parametrize("gap", [30.0, 800.0, 1e5, -800.0, -1e5])
def test_no_gap_to_the_reference_overflows(gap) -> None:
    logp = torch.full((GROUP, LENGTH), -2.0, dtype=torch.float64, requires_grad=True)
    batch = rollouts(ref=torch.full_like(logp, -2.0 + gap))
    batch = wf.HybridBatch(**{**batch.__dict__, "rewards": torch.ones_like(REWARDS)})
    out = step(batch, logp, text_kl=0.1)
    (gradient,) = torch.autograd.grad(out.loss, logp)
    assert torch.isfinite(out.loss) and torch.isfinite(out.metrics["text_kl"])
    # Towards the reference: more likely where the reference gives the token more.
    assert torch.isfinite(gradient).all() and (gradient.sign() == -math.copysign(1, gap)).all()


@pytest.mark.parametrize("name", ["old", "ref"])
@pytest.mark.parametrize("bad", [-INF, INF, math.nan])
def test_a_log_prob_that_is_not_finite_is_named(name, bad) -> None:
    table = logps(1)
    table[1, 2] = bad
    with pytest.raises(ValueError, match=rf"{name}_logp\[7\]: got {bad}, want a finite log-prob"):
        step(rollouts(**{name: table}), logps(0), text_kl=0.1)
