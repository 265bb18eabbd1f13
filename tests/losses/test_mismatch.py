"""Weights and metrics of rollouts whose sampler differs from the trainer."""

import math

import pytest
import torch

import wavalign_fast as wf
from tests.losses.formula import LAYOUT, H, V

NAN, INF = math.nan, math.inf
TEXT_ID, SPEECH_ID = 1, 13


def test_weights_are_ratios_up_to_the_cap() -> None:
    logp = torch.tensor([-1.0, -2.0, -1.0, -900.0, -1.0])
    sampler = torch.tensor([-1.0, -1.0, -1.5, -1.0, -900.0])
    got = wf.truncated_importance(logp, sampler, 1.25)
    want = torch.tensor([1.0, math.exp(-1.0), 1.25, 0.0, 1.25], dtype=torch.float64)
    torch.testing.assert_close(got, want)
    assert got.dtype == torch.float64
    # At the cap itself nothing is lost: a cap of 1 leaves equal log-probs at 1.
    assert wf.truncated_importance(logp, logp, 1.0).tolist() == [1.0] * 5
    assert wf.truncated_importance(torch.tensor([NAN]), logp[:1], 2.0).isnan().all()


@pytest.mark.parametrize("cap", [0.5, NAN, INF, "2", None])
def test_a_cap_that_is_none_is_refused(cap) -> None:
    with pytest.raises(ValueError, match=r"cap: got .*, want >= 1 and finite"):
        wf.truncated_importance(torch.zeros(1), torch.zeros(1), cap)


def test_tables_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"sampler_logp: got shape \(2,\), want \(3,\)"):
        wf.truncated_importance(torch.zeros(3), torch.zeros(2), 2.0)
    with pytest.raises(ValueError, match=r"sampler_logp: got torch.int64, want a floating"):
        wf.truncated_importance(torch.zeros(3), torch.zeros(3, dtype=torch.long), 2.0)


def test_metrics_of_each_modality_add_up_over_parts() -> None:
    gaps = [0.5, -0.25, 0.1, 1.0, NAN]
    ids = torch.tensor([TEXT_ID, TEXT_ID, SPEECH_ID, SPEECH_ID, TEXT_ID])
    sampler = torch.tensor([-3.0] * 5, dtype=torch.float64)
    logp = sampler + torch.tensor(gaps, dtype=torch.float64)
    where = torch.tensor([True] * 4 + [False])

    def totals(at: slice) -> wf.MetricTotals:
        return wf.mismatch_totals(logp[at], sampler[at], ids[at], where[at], layout=LAYOUT, cap=1.5)

    means = (totals(slice(3)) + totals(slice(3, 5)) + totals(slice(0))).means()

    def k3(gap: float) -> float:
        return math.exp(gap) - 1 - gap

    for name, members in (("text", gaps[:2]), ("speech", gaps[2:4]), ("all", gaps[:4])):
        count = len(members)
        assert means[f"logp_diff/{name}_mean"] == pytest.approx(sum(map(abs, members)) / count)
        assert means[f"sampler_kl/{name}"] == pytest.approx(sum(map(k3, members)) / count)
        truncated = sum(math.exp(gap) > 1.5 for gap in members) / count
        assert means[f"importance/{name}_truncated"] == truncated == 0.5
    assert len(means) == 9
    without_cap = wf.mismatch_totals(logp, sampler, ids, where, layout=LAYOUT)
    assert {*without_cap.sums} == {name for name in means if "truncated" not in name}


def batch(importance: list[float], **more) -> wf.HybridBatch:
    """Two rollouts of a text and a speech token, and a demonstration of one."""
    policy = torch.tensor([0, 0, 1, 1, -1])
    return wf.HybridBatch(
        torch.tensor([TEXT_ID, SPEECH_ID, TEXT_ID, SPEECH_ID, TEXT_ID]),
        policy,
        torch.where(policy < 0, 0, -1),
        torch.tensor([[1.0, 3.0]]),
        importance=torch.tensor(importance),
        **more,
    )


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_weights_multiply_the_surrogate_and_not_the_kl(backend: str, level: str) -> None:
    """The head is all zeros, so every log-prob is -log V and every ratio e^0.1."""
    weights = [2.0, 0.5, 0.0, 1.0, NAN]
    logp = torch.full((5,), -math.log(V))
    given = {"ref_logp": logp + 1.0, "old_logp": logp - 0.1}
    objective = wf.HybridObjective(
        LAYOUT, policy_scope="all", gate=0.5, text_kl=0.3, clip=0.2,
        importance_sampling_level=level, options=wf.LossOptions(backend=backend),
    )  # fmt: skip
    hidden = torch.zeros(5, H, requires_grad=True)
    weight = torch.zeros(V, H, requires_grad=True)
    out = objective(hidden, weight, batch(weights, **given))
    out.loss.backward()
    assert hidden.grad.isfinite().all() and weight.grad.isfinite().all()
    a = wf.group_advantages(torch.tensor([[1.0, 3.0]]))[0].tolist()
    ratio, k = math.exp(0.1), math.e - 2
    want = sum(
        -w * ratio * a[row] + 0.3 * k * text
        for w, row, text in ((2.0, 0, 1), (0.5, 0, 0), (0.0, 1, 1), (1.0, 1, 0))
    )
    assert out.policy_loss.item() == pytest.approx(want / 4, rel=1e-5)
    # A weight of 0 takes the surrogate of its token away; the KL keeps text tokens alive.
    assert out.metrics["zero_gradient_rows"] == 0
    only_text = wf.HybridObjective(LAYOUT, gate=1.0, options=wf.LossOptions(backend=backend))
    assert only_text(hidden, torch.zeros(V, H), batch(weights)).metrics["zero_gradient_rows"] == 1


@pytest.mark.parametrize("bad", [-0.5, NAN, INF])
def test_a_weight_that_is_negative_or_not_finite_is_named(bad: float) -> None:
    objective = wf.HybridObjective(LAYOUT, policy_scope="all", gate=1.0)
    with pytest.raises(
        ValueError, match=rf"importance\[1\]: got {bad}, want a finite weight >= 0 where"
    ):
        objective(torch.zeros(5, H), torch.zeros(V, H), batch([1.0, bad, 1.0, 1.0, 1.0]))
    # Outside the policy's scope any value will do.
    text = wf.HybridObjective(LAYOUT, gate=1.0)
    out = text(torch.zeros(5, H), torch.zeros(V, H), batch([1.0, bad, 1.0, 1.0, 1.0]))
    assert out.loss.isfinite()
