"""Values at positions without loss never reach it; a tied head gets both its gradients."""

import pytest
import torch

import wavalign_fast as wf
from tests.losses.formula import LAYOUT, Formula, H, V

NAN = float("nan")
TEXT_ID, SPEECH_ID = 1, 13
OPTIONS = [wf.LossOptions(backend=name) for name in ("reference", "cpu")]
CONFIGS = [
    {"importance_sampling_level": level, "normalisation": normalisation, "kl_scope": kl_scope}
    for level in ("token", "sequence")
    for normalisation in ("token", "sequence")
    for kl_scope in ("policy", "completion")
]


def mixed_batch(**tables: torch.Tensor) -> wf.HybridBatch:
    """Two rollouts of text, speech, text; a demonstration of both; a position in no row."""
    targets = [TEXT_ID, SPEECH_ID, TEXT_ID] * 2 + [TEXT_ID, SPEECH_ID, 0]
    return wf.HybridBatch(
        torch.tensor(targets),
        torch.tensor([0, 0, 0, 1, 1, 1, -1, -1, -1]),
        torch.tensor([-1, -1, -1, -1, -1, -1, 0, 0, -1]),
        torch.tensor([[1.0, 4.0]]),
        **tables,
    )


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: o.backend)
@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: "-".join(c.values()))
def test_nan_at_positions_without_loss_changes_no_bit(config, options) -> None:
    """Text policy and text β: NaN in every other log-prob, and in hidden states without loss."""
    torch.manual_seed(0)
    clean = {name: -2 * torch.rand(9) for name in ("old_logp", "ref_logp")}
    text_of_rollouts = torch.tensor([1, 0, 1, 1, 0, 1, 0, 0, 0], dtype=torch.bool)
    dirty = {name: torch.where(text_of_rollouts, x, NAN) for name, x in clean.items()}
    hidden, weight = torch.randn(9, H), torch.randn(V, H)
    objective = wf.HybridObjective(
        LAYOUT, text_kl=0.1, clip=0.2, gate=0.5, options=options, **config
    )
    poisoned = hidden.clone()
    poisoned[~objective.token_weights(mixed_batch(**clean)).live] = NAN

    def run(hidden: torch.Tensor, tables: dict) -> tuple[torch.Tensor, ...]:
        leaves = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        out = objective(*leaves, mixed_batch(**tables))
        return out.loss, *torch.autograd.grad(out.loss, leaves)

    wanted = run(hidden, clean)
    with torch.autograd.set_detect_anomaly(True):  # no NaN that is masked later either
        on_the_way = run(hidden, dirty)
    for results in (run(poisoned, dirty), on_the_way):
        for got, want in zip(results, wanted, strict=True):
            assert torch.isfinite(want).all() and torch.equal(got, want)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: "-".join(c.values()))
@pytest.mark.parametrize("bad", [NAN, -torch.inf, torch.inf])
def test_a_reference_without_a_coefficient_changes_no_bit(bad, config) -> None:
    """Speech is in the policy's scope, but has no β."""
    speech = torch.tensor([0, 1, 0, 0, 1, 0, 0, 1, 0], dtype=torch.bool)
    clean = torch.full((9,), -1.0)
    hidden = torch.randn(9, H, requires_grad=True)
    objective = wf.HybridObjective(
        LAYOUT, policy_scope="all", text_kl=0.1, gate=0.5, options=OPTIONS[0], **config
    )
    results = []
    for ref in (clean, torch.where(speech, bad, clean)):
        loss = objective(hidden, torch.ones(V, H), mixed_batch(ref_logp=ref)).loss
        results.append((loss, torch.autograd.grad(loss, hidden)[0]))
    for want, got in zip(*results, strict=True):
        assert torch.isfinite(want).all() and torch.equal(got, want)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: "-".join(c.values()))
def test_a_position_in_both_terms_keeps_them_apart(config) -> None:
    """Speech of a rollout with a label is live, but not in the policy term or its KL."""
    row = torch.tensor([0, 0, 1])
    batch = wf.HybridBatch(
        torch.tensor([TEXT_ID, SPEECH_ID, TEXT_ID]), row, torch.tensor([-1, 0, -1]),
        torch.tensor([[1.0, 4.0]]), old_logp=torch.tensor([-1.0, NAN, -1.0]),
        ref_logp=torch.tensor([-1.0, NAN if config["kl_scope"] == "policy" else -1.0, -1.0]),
    )  # fmt: skip
    hidden = torch.randn(3, H, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(V, H, dtype=torch.float64)
    settings = {"text_kl": 0.1, "speech_kl": 0.3} | config
    out = wf.HybridObjective(LAYOUT, gate=0.5, options=OPTIONS[0], **settings)(
        hidden, weight, batch
    )
    want = Formula(batch, hidden, weight, settings).loss(0.5)
    torch.testing.assert_close(out.loss, want, rtol=1e-12, atol=1e-12)
    got, truth = (torch.autograd.grad(loss, hidden)[0] for loss in (out.loss, want))
    torch.testing.assert_close(got, truth, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: o.backend)
@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: "-".join(c.values()))
def test_without_a_token_in_scope_the_loss_is_a_connected_zero(config, options) -> None:
    row = torch.tensor([0, 1])
    batch = wf.HybridBatch(
        torch.tensor([SPEECH_ID] * 2), row, torch.tensor([-1, -1]), torch.tensor([[1.0, 4.0]]),
        old_logp=torch.full((2,), NAN), ref_logp=torch.full((2,), NAN),
    )  # fmt: skip
    leaves = torch.full((2, H), NAN, requires_grad=True), torch.randn(V, H, requires_grad=True)
    out = wf.HybridObjective(LAYOUT, text_kl=0.1, gate=0.5, options=options, **config)(
        *leaves, batch
    )
    assert out.loss == 0
    for gradient in torch.autograd.grad(out.loss, leaves):
        assert not gradient.any()


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_a_rollout_without_a_token_in_scope_counts_by_sequences_only(level) -> None:
    """Rollout 1 is all speech: 0 in the mean over rollouts, absent from the mean over tokens."""
    targets = torch.tensor([TEXT_ID, TEXT_ID, SPEECH_ID, TEXT_ID])
    row = torch.tensor([0, 0, 1, 2])
    batch = wf.HybridBatch(
        targets, row, torch.full_like(row, -1), torch.tensor([[1.0, 2.0, 6.0]]),
        old_logp=torch.tensor([-1.0, -1.0, NAN, -1.0]),
    )  # fmt: skip
    hidden, weight = torch.zeros(4, H).double(), torch.zeros(V, H).double()  # logp = -log V
    ratio = torch.tensor(1.0 / V).double() * torch.e
    a = wf.group_advantages(batch.rewards)[0].double()
    for normalisation, want in (
        ("sequence", -ratio * (a[0] + a[2]) / 3),
        ("token", -ratio * (2 * a[0] + a[2]) / 3),
    ):
        out = wf.HybridObjective(
            LAYOUT, gate=1.0, normalisation=normalisation, importance_sampling_level=level,
            options=OPTIONS[0],
        )(hidden, weight, batch)  # fmt: skip
        torch.testing.assert_close(out.loss, want, rtol=1e-6, atol=0)


@pytest.mark.parametrize("options, dtype, tolerance", [
    (OPTIONS[0], torch.float64, 1e-12), (OPTIONS[1], torch.float32, 1e-5),
])  # fmt: skip
def test_a_tied_head_gets_both_gradients(options, dtype, tolerance) -> None:
    """The embedding is the head: its gradient through the hidden states adds to the direct one."""
    torch.manual_seed(0)
    batch, ids = mixed_batch(), torch.tensor([2, 1, 13, 2, 1, 13, 2, 1, 0])
    embedding = torch.randn(V, H, dtype=torch.float64, requires_grad=True)
    want = torch.autograd.grad(
        Formula(batch, embedding[ids].tanh(), embedding, {}).loss(0.5), embedding
    )[0]
    tied = embedding.detach().to(dtype).requires_grad_()
    objective = wf.HybridObjective(LAYOUT, gate=0.5, options=options)
    got = torch.autograd.grad(objective(tied[ids].tanh(), tied, batch).loss, tied)[0]
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)
    alone = torch.autograd.grad(objective(tied[ids].tanh().detach(), tied, batch).loss, tied)[0]
    assert (alone.double() - want).abs().max() > 1e-3
