"""Preference loss: the released values and gradients, and edge cases."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch.utils.checkpoint import checkpoint

import wavalign_fast as wf

CASES = sorted((Path(__file__).parents[1] / "data" / "dpo").glob("*.safetensors"))
LAYOUT = wf.ModalityLayout(vocab_size=20, speech=((10, 20),), boundary=(8, 9))


@pytest.mark.parametrize("backend, dtype, tolerance", [
    ("reference", torch.float64, 1e-6), ("cpu", torch.float32, 1e-5),
])  # fmt: skip
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_released_values_and_gradients(path, backend, dtype, tolerance) -> None:
    with safe_open(path, "pt") as file:
        config, expected = (json.loads(file.metadata()[k]) for k in ("config", "expected"))
        case = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    hidden = case["hidden"].to(dtype, copy=True).requires_grad_()
    weight = case["weight"].to(dtype, copy=True).requires_grad_()
    targets = torch.full_like(case["labels"], -100)
    targets[:, :-1] = case["labels"][:, 1:]
    sequence = torch.arange(len(targets)).unsqueeze(1).expand_as(targets)
    layout = wf.ModalityLayout(
        vocab_size=config["vocab"],
        speech=((config["audio_start"], config["vocab"]),),
        boundary=(config["begin_of_audio"], config["end_of_audio"]),
        boundary_as="speech" if config["boundaries_are_speech"] else "text",
    )
    out = wf.fused_dpo_loss(
        hidden.flatten(0, 1),
        weight,
        targets.flatten(),
        sequence.flatten(),
        torch.tensor(config["pairs"]),
        layout=layout,
        scope=config["scope"],
        beta=config["beta"],
        ref_logp=case["reference_sequence_logps"] if config["use_reference"] else None,
        options=wf.LossOptions(backend=backend),
    )
    out.loss.backward()
    for value, want in (
        (out.loss, torch.tensor(expected["loss"])),
        (out.sequence_logp, case["policy_sequence_logps"]),
    ):
        torch.testing.assert_close(value.double(), want.double(), rtol=tolerance, atol=1e-12)
    for leaf, name in ((hidden, "grad_hidden"), (weight, "grad_weight")):
        worst = (leaf.grad.double() - case[name]).abs().max()
        assert worst <= tolerance * case[name].abs().max(), name


def small(targets: list[int], sequence: list[int], **options) -> wf.DPOOutput:
    torch.manual_seed(0)
    hidden = torch.randn(len(targets), 4, requires_grad=True)
    return wf.fused_dpo_loss(
        hidden, torch.randn(20, 4), torch.tensor(targets), torch.tensor(sequence),
        torch.tensor([[0, 1], [2, 3]]), layout=LAYOUT, **options,
    )  # fmt: skip


def test_a_pair_without_a_token_in_scope_is_left_out() -> None:
    targets, sequence = [1, 2, 3, 12, 13, -100], [0, 0, 1, 2, 3, 3]
    ref = torch.tensor([-1.0, -2.0, float("nan"), 0.0])
    out = small(targets, sequence, ref_logp=ref)
    alone = small(targets, sequence, scope="all")
    assert out.metrics["pairs"] == 1 and out.metrics["skipped_pairs"] == 1
    assert alone.metrics["pairs"] == 2
    assert torch.isfinite(out.loss)
    margin = (out.sequence_logp[0] - out.sequence_logp[1]) - 1.0
    torch.testing.assert_close(out.loss, -torch.nn.functional.logsigmoid(0.1 * margin))


def test_without_usable_pairs_the_loss_is_a_connected_zero() -> None:
    out = small([-100, 12], [0, 1])
    out.loss.backward()
    assert out.loss == 0


def test_length_normalisation_divides_both_models() -> None:
    targets, sequence = [1, 2, 3, 1, 2], [0, 0, 1, 2, 3]
    plain, mean = small(targets, sequence), small(targets, sequence, length_normalised=True)
    torch.testing.assert_close(mean.sequence_logp[0], plain.sequence_logp[0] / 2)
    ref = torch.tensor([-2.0, -1.0, -1.0, -1.0])
    normalised = small(targets, sequence, length_normalised=True, ref_logp=ref)
    assert normalised.metrics["ref_chosen_logp"] == pytest.approx(-1.0)


@pytest.mark.parametrize("scope", ["all", "text", "speech"])
@pytest.mark.parametrize("length_normalised", [False, True])
@pytest.mark.parametrize("reference", [False, True])
def test_every_scope_is_its_formula(scope, length_normalised, reference) -> None:
    torch.manual_seed(0)
    targets = torch.tensor([1, 12, 2, 13, 14, 15, -100, 1, 8, 2, 16, 3, 17])
    sequence = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 3, 3])
    pairs = torch.tensor([[0, 1], [3, 2], [0, 3]])
    hidden = torch.randn(13, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(20, 4, dtype=torch.float64, requires_grad=True)
    ref = -5 * torch.rand(4) if reference else None
    out = wf.fused_dpo_loss(
        hidden, weight, targets, sequence, pairs, layout=LAYOUT, scope=scope, beta=0.3,
        ref_logp=ref, length_normalised=length_normalised,
        options=wf.LossOptions(backend="reference"),
    )  # fmt: skip
    table = torch.log_softmax(hidden @ weight.T, -1)
    sums = []
    for s in range(4):
        logps = [
            table[t, y]
            for t, y in enumerate(targets.tolist())
            if sequence[t] == s and y >= 0 and scope in ("all", "text" if y < 8 else "speech")
        ]
        total = sum(logps) - (ref[s].double() if reference else 0.0)
        sums.append(total / len(logps) if length_normalised else total)
    losses = [torch.log1p((-0.3 * (sums[c] - sums[r])).exp()) for c, r in pairs.tolist()]
    want = sum(losses) / 3
    torch.testing.assert_close(out.loss, want, rtol=1e-12, atol=0)
    leaves = hidden, weight
    got, truth = (torch.autograd.grad(loss, leaves) for loss in (out.loss, want))
    for ours, theirs in zip(got, truth, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("side, at", [("chosen", 2), ("rejected", 3)])
def test_a_reference_that_is_not_finite_is_named(side, at) -> None:
    ref = torch.zeros(4)
    ref[at] = -torch.inf
    with pytest.raises(
        ValueError, match=rf"{side} ref_logp\[1\]: got -inf, want a finite log-prob"
    ):
        small([1, 2, 3, 1], [0, 1, 2, 3], ref_logp=ref)


def test_inside_a_checkpoint_the_gradients_are_the_same() -> None:
    targets, sequence = torch.tensor([1, 2, 3, 4, 5, 6]), torch.tensor([0, 0, 1, 2, 3, 3])
    pairs, hidden, weight = torch.tensor([[0, 1], [2, 3]]), torch.randn(6, 4), torch.randn(20, 4)

    def loss(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return wf.fused_dpo_loss(hidden, weight, targets, sequence, pairs, layout=LAYOUT).loss

    found = []
    for run in (loss, lambda *args: checkpoint(loss, *args, use_reentrant=False)):
        leaves = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        found.append(torch.autograd.grad(run(*leaves), leaves))
    for got, want in zip(*found, strict=True):
        assert torch.equal(got, want) and want.any()


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"got sequence 3, want \[0, 3\)"):
        small([1, 2], [0, 1], ref_logp=torch.zeros(3))
    with pytest.raises(ValueError, match="beta: got 0, want > 0"):
        small([1, 2], [0, 1], beta=0)
    for beta in (float("nan"), float("inf"), -1.0, None, "0.1"):
        with pytest.raises(ValueError, match=r"beta: got .*, want > 0 and finite"):
            small([1, 2], [0, 1], beta=beta)
    for name, bad, message in (
        ("targets", [1], "got a list, want a torch.Tensor"),
        ("sequence_id", torch.zeros(1), "got torch.float32, want torch.int64"),
        ("pairs", torch.zeros(1, 2, dtype=torch.int32), "got torch.int32, want torch.int64"),
        ("pairs", torch.zeros(1, 2).long().to("meta"), "got a tensor on meta, want cpu"),
        ("ref_logp", [0.0], "got a list, want a torch.Tensor"),
    ):
        row = torch.zeros(1, dtype=torch.long)
        given = {"targets": row, "sequence_id": row, "pairs": torch.zeros(1, 2).long()}
        with pytest.raises(ValueError, match=f"{name}: {message}"):
            wf.fused_dpo_loss(
                torch.zeros(1, 4), torch.zeros(20, 4), layout=LAYOUT, **(given | {name: bad})
            )
    with pytest.raises(ValueError, match=r"^scope: got 'audio'"):
        small([1, 2], [0, 1], scope="audio")
    with pytest.raises(ValueError, match=r"ref_chosen: got a list, want a torch\.Tensor"):
        wf.dpo_loss(torch.zeros(2), torch.zeros(2), [0.0, 0.0], torch.zeros(2), beta=0.1)
    with pytest.raises(ValueError, match="want one shape"):
        wf.dpo_loss(torch.zeros(2), torch.zeros(2), torch.zeros(2), torch.zeros(1), beta=0.1)
