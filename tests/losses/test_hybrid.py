"""The objective against its formula written out token by token, and edge cases."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import wavalign_fast as wf
from tests.losses.formula import LAYOUT, Formula, H, V, random_batch

NAN = float("nan")


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6), prompts=st.integers(0, 3), group=st.integers(1, 4),
    anchors=st.integers(0, 3), reference=st.booleans(), old=st.booleans(),
    importance=st.booleans(),
    policy_scope=st.sampled_from(["all", "text", "speech"]),
    anchor_scope=st.sampled_from(["all", "text", "speech"]),
    kl_scope=st.sampled_from(["policy", "completion"]),
    clip=st.sampled_from([None, (0.2, 0.3)]), speech_weight=st.sampled_from([0.0, 0.5, 1.0]),
    level=st.sampled_from(["token", "sequence"]),
    normalisation=st.sampled_from(["token", "sequence"]),
)  # fmt: skip
def test_objective_is_its_formula(
    seed, prompts, group, anchors, reference, old, importance, policy_scope, anchor_scope, kl_scope,
    clip, speech_weight, level, normalisation,
):  # fmt: skip
    batch, hidden, weight = random_batch(
        random.Random(seed), prompts, group, anchors, reference=reference, old=old,
        importance=importance,
    )  # fmt: skip
    config = {
        "policy_scope": policy_scope, "anchor_scope": anchor_scope, "kl_scope": kl_scope,
        "clip": clip, "text_weight": 2.0, "speech_weight": speech_weight,
        "anchor_speech_weight": 2.0, "text_kl": 0.1 * reference, "speech_kl": 0.3 * reference,
        "importance_sampling_level": level, "normalisation": normalisation,
    }  # fmt: skip
    leaves = hidden.requires_grad_(), weight.requires_grad_()
    want = Formula(batch, hidden, weight, config).loss(0.625)
    want_grads = torch.autograd.grad(want + 0.0 * (hidden.sum() + weight.sum()), leaves)

    exact = wf.HybridObjective(
        LAYOUT, gate=0.625, options=wf.LossOptions(backend="reference"), **config
    )
    out = exact(hidden, weight, batch)
    assert out.loss.item() == pytest.approx(want.item(), rel=1e-12, abs=1e-12)
    for got, truth in zip(torch.autograd.grad(out.loss, leaves), want_grads, strict=True):
        torch.testing.assert_close(got, truth, rtol=1e-12, atol=1e-12 * (1 + scale(truth)))

    fast = wf.HybridObjective(LAYOUT, gate=0.625, options=wf.LossOptions(backend="cpu"), **config)
    low = hidden.detach().float().requires_grad_()
    fast_out = fast(low, weight.detach().float(), batch)
    fast_out.loss.backward()
    assert fast_out.loss.item() == pytest.approx(want.item(), rel=1e-4, abs=1e-5)
    torch.testing.assert_close(
        low.grad.double(), want_grads[0], rtol=1e-3, atol=1e-5 * (1 + scale(want_grads[0]))
    )


def scale(gradient: torch.Tensor) -> float:
    return gradient.abs().max().item() if gradient.numel() else 0.0


def simple_batch(rewards: list[float], *, anchors: bool = True) -> wf.HybridBatch:
    group = len(rewards)
    policy = torch.arange(group).repeat_interleave(3)
    targets = torch.tensor([1, 13, 2]).repeat(group)
    anchor = torch.full_like(policy, -1)
    if anchors:
        policy = torch.cat([policy, torch.full((3,), -1)])
        anchor = torch.cat([anchor, torch.zeros(3, dtype=torch.long)])
        targets = torch.cat([targets, torch.tensor([6, 14, 7])])
    shape = (1, group) if group else (0, 4)
    return wf.HybridBatch(targets, policy, anchor, torch.tensor(rewards).reshape(shape))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize(
    "batch",
    [
        simple_batch([1.0, 5.0]),
        simple_batch([3.0]),
        simple_batch([3.0, 3.0, 3.0]),
        simple_batch([3.0, NAN, 5.0]),
        simple_batch([NAN, NAN]),
        simple_batch([1.0, 5.0], anchors=False),
        simple_batch([]),
        simple_batch([], anchors=False),
    ],
    ids=["plain", "one", "equal", "missing", "all-missing", "no-anchor", "no-rollout", "empty"],
)
def test_degenerate_batches_give_finite_connected_gradients(batch, backend) -> None:
    t = batch.targets.shape[0]
    hidden, weight = torch.randn(t, H, requires_grad=True), torch.randn(V, H, requires_grad=True)
    objective = wf.HybridObjective(LAYOUT, options=wf.LossOptions(backend=backend))
    out = objective(hidden, weight, batch)
    out.loss.backward()
    assert torch.isfinite(out.loss)
    assert torch.isfinite(hidden.grad).all() and torch.isfinite(weight.grad).all()
    assert all(torch.isfinite(value) for value in out.metrics.values())
    if t == 0:
        assert out.loss == 0 and not weight.grad.any()


def test_rows_without_loss_are_never_read() -> None:
    batch = simple_batch([1.0, 5.0])
    hidden = torch.randn(batch.targets.shape[0], H)
    speech_of_rollouts = (batch.policy_row >= 0) & (batch.targets == 13)
    hidden[speech_of_rollouts] = NAN
    leaf, weight = hidden.clone().requires_grad_(), torch.randn(V, H, requires_grad=True)
    out = wf.HybridObjective(LAYOUT, gate=0.5)(leaf, weight, batch)
    out.loss.backward()
    assert torch.isfinite(weight.grad).all()
    assert torch.equal(leaf.grad[speech_of_rollouts], torch.zeros(2, H))
    assert out.metrics["skipped_rows"] == 2
    assert "speech_entropy" not in out.metrics and "text_entropy" in out.metrics


def test_on_policy_ratio_is_exactly_one() -> None:
    batch = simple_batch([1.0, 2.0, 5.0])
    hidden = torch.randn(batch.targets.shape[0], H).bfloat16()
    weight = torch.randn(V, H).bfloat16()
    objective = wf.HybridObjective(LAYOUT, policy_scope="all", clip=0.0, gate=1.0)
    first = objective(hidden, weight, batch)
    again = objective(hidden, weight, wf.HybridBatch(**{**batch.__dict__, "old_logp": first.logp}))
    assert torch.equal(first.policy_loss, again.policy_loss)
    assert again.metrics["clip_ratio/region_mean"] == 0


def test_equal_rewards_leave_their_rows_out_of_the_gradient() -> None:
    out = wf.HybridObjective(LAYOUT, gate=0.5)(
        torch.randn(9, H), torch.randn(V, H), simple_batch([3.0, 3.0])
    )
    assert out.metrics["zero_gradient_rows"] == 4  # the text tokens of two rollouts


def test_a_given_weight_does_not_move_the_gate() -> None:
    objective = wf.HybridObjective(LAYOUT)
    batch, hidden, weight = simple_batch([1.0, 5.0]), torch.randn(9, H), torch.randn(V, H)
    out = objective(hidden, weight, batch, rl_weight=torch.tensor(0.25))
    assert out.rl_weight == 0.25 and objective.gate.value is None
    torch.testing.assert_close(out.loss, 0.25 * out.policy_loss + 0.75 * out.anchor_loss)
    moved = objective(hidden, weight, batch)
    assert torch.equal(objective.gate.value, moved.rl_weight)
    assert set(objective.state_dict()) == {"gate.value"}


def test_eos_follows_its_owner() -> None:
    batch = wf.HybridBatch(
        torch.tensor([5, 5]), torch.tensor([0, -1]), torch.tensor([-1, 0]), torch.tensor([[1.0]])
    )
    hidden, weight = torch.randn(2, H), torch.randn(V, H)
    for owner, counts in (("text", (1, 0)), ("speech", (0, 1))):
        layout = wf.ModalityLayout(vocab_size=V, speech=((12, 22),), eos=(5,), eos_as=owner)
        metrics = wf.HybridObjective(layout, anchor_scope="speech")(hidden, weight, batch).metrics
        assert (metrics["policy_text_tokens"], metrics["anchor_speech_tokens"]) == counts


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"policy_scope": "audio"}, "policy_scope: got 'audio', want one of all, text, speech"),
        ({"kl_scope": "all"}, "kl_scope: got 'all'"),
        ({"clip": (1.5, 0.2)}, r"clip: got \(1.5, 0.2\)"),
        ({"gate": 1.5}, r"gate: got 1.5, want a MixingGate or a λ in \[0, 1\]"),
        ({"text_weight": -1.0}, "policy weights: got text -1.0"),
        ({"advantage_std": "none"}, "advantage_std: got 'none', want 'population' or 'sample'"),
        ({"importance_sampling_level": "row"}, "importance_sampling_level: got 'row'"),
        ({"normalisation": "mean"}, "normalisation: got 'mean', want 'sequence' or 'token'"),
        *(
            ({name: bad}, f"{kind} weights: got .*want >= 0 and finite")
            for name, kind in (
                ("text_weight", "policy"),
                ("speech_weight", "policy"),
                ("anchor_text_weight", "anchor"),
                ("anchor_speech_weight", "anchor"),
                ("text_kl", "kl"),
                ("speech_kl", "kl"),
            )
            for bad in (NAN, float("inf"), -float("inf"), "1", None)
        ),
        *(
            ({"clip": clip}, "clip: got .*want ε or")
            for clip in (NAN, (0.2, NAN), (NAN, 0.2), (0.2, float("inf")), -0.1, "0.2", (0.2,))
        ),
        *(
            ({"gate": gate}, r"gate: got .*want a MixingGate or a λ in \[0, 1\]")
            for gate in (NAN, float("inf"), -0.1, "adaptive", torch.tensor(NAN))
        ),
    ],
)
def test_a_bad_option_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wf.HybridObjective(LAYOUT, **settings)


def test_a_step_that_does_not_fit_is_refused() -> None:
    batch = simple_batch([1.0, 5.0])
    objective = wf.HybridObjective(LAYOUT, text_kl=0.1)
    with pytest.raises(ValueError, match=r"need batch.ref_logp, got None"):
        objective(torch.randn(9, H), torch.randn(V, H), batch)
    objective = wf.HybridObjective(LAYOUT)
    with pytest.raises(ValueError, match="hidden has 8 positions, want 9"):
        objective(torch.randn(8, H), torch.randn(V, H), batch)
    with pytest.raises(ValueError, match="weight has 23 rows, want 24"):
        objective(torch.randn(9, H), torch.randn(23, H), batch)
