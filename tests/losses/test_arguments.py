"""Wrong arguments of the losses are refused by name."""

import numpy as np
import pytest
import torch

import wavalign_fast as wf

LAYOUT = wf.ModalityLayout(vocab_size=12, speech=((7, 10),), boundary=(3, 4), eos=(5,))
ROW = torch.zeros(4, dtype=torch.long)
HEAD = {"hidden": torch.zeros(4, 3), "weight": torch.zeros(12, 3)}


def batch(**changes) -> wf.HybridBatch:
    tables = {"targets": ROW, "policy_row": ROW, "anchor_row": ROW - 1, "rewards": [[1.0, 2.0]]}
    return wf.HybridBatch(**(tables | changes))


@pytest.mark.parametrize(
    "settings",
    [
        {"speech": (pair for pair in [(7, 10)])},
        {"speech": zip([7], [10], strict=True)},
        {"speech": [[7, 10]], "boundary": range(3, 5), "eos": [np.int64(5)]},
    ],
    ids=["generator", "zip", "lists"],
)
def test_a_layout_copies_its_arguments(settings) -> None:
    layout = wf.ModalityLayout(**({"vocab_size": 12, "boundary": (3, 4), "eos": (5,)} | settings))
    for given in settings.values():
        if isinstance(given, list):
            given.clear()
    ids = torch.arange(12)
    assert torch.equal(layout.classify(ids), LAYOUT.classify(ids))


@pytest.mark.parametrize("ids", [torch.tensor([7.9]), torch.tensor([True]), torch.tensor([1j])])
def test_ids_that_are_not_integers_are_refused(ids) -> None:
    with pytest.raises(ValueError, match=rf"^ids: got {ids.dtype}, want an integer dtype"):
        LAYOUT.classify(ids)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"batch": None}, "batch: got a NoneType, want a HybridBatch"),
        ({"batch": {"targets": ROW}}, "batch: got a dict, want a HybridBatch"),
        ({"batch": batch(targets=ROW + 12)}, "batch.targets: id 12 is outside the layout"),
        ({"normalisers": 2.0}, "normalisers: got a float, want a Normalisers"),
        ({"normalisers": (1, 1, 1)}, "normalisers: got a tuple, want a Normalisers"),
        ({"hidden": torch.zeros(())}, r"hidden: got shape \(\), want \[T, H\]"),
        ({"hidden": torch.zeros(4)}, r"hidden: got shape \(4,\), want \[T, H\]"),
        ({"weight": torch.zeros(())}, r"weight: got shape \(\), want \[V, H\]"),
        ({"weight": torch.zeros(11, 3)}, "weight has 11 rows, want 12"),
        ({"rl_weight": torch.ones((), device="meta")}, "rl_weight: got a tensor on meta, want cpu"),
        (
            {"batch": batch(ref_logp=torch.zeros(4, device="meta"))},
            "batch.ref_logp: got a tensor on meta, want cpu",
        ),
        (
            {"batch": batch(rewards=torch.ones(1, 2, device="meta"))},
            "batch.rewards: got a tensor on meta, want cpu",
        ),
        (
            {"normalisers": wf.Normalisers(torch.ones((), device="meta"), 1.0, 1.0)},
            "normalisers.policy: got a tensor on meta, want cpu",
        ),
    ],
    ids=lambda x: "" if isinstance(x, dict) else x,
)
def test_an_argument_of_the_objective_is_named(change: dict, message: str) -> None:
    objective = wf.HybridObjective(LAYOUT, gate=0.5)
    good = HEAD | {"batch": batch()}
    objective(**good)
    with pytest.raises(ValueError, match=f"^{message}"):
        objective(**(good | change))


@pytest.mark.parametrize("bad", [None, {}, wf.ModalityLayout, torch.zeros(12)], ids=str)
def test_a_layout_of_another_type_is_refused(bad) -> None:
    row, pairs = torch.tensor([0, 0, 1, 1]), torch.tensor([[0, 1]])
    for call in (
        lambda: wf.HybridObjective(bad),
        lambda: wf.fused_dpo_loss(*HEAD.values(), ROW, row, pairs, layout=bad),
        lambda: wf.count_pairs(ROW, row, pairs, layout=bad),
    ):
        with pytest.raises(ValueError, match=r"layout: got an? .*, want a ModalityLayout"):
            call()


def test_options_of_another_type_are_refused() -> None:
    for call in (
        lambda: wf.HybridObjective(LAYOUT, options="cpu"),
        lambda: wf.group_advantages([[1.0, 2.0]], options="cpu"),
        lambda: wf.MixingGate()([[1.0, 2.0]], options="cpu"),
    ):
        with pytest.raises(ValueError, match="options: got a str, want a LossOptions"):
            call()


def test_a_huge_index_is_refused_before_its_table_is_allocated() -> None:
    far = torch.full((4,), 10**12)
    with pytest.raises(ValueError, match=r"anchor_row: got 1000000000000, want -1 or a row in"):
        batch(anchor_row=far)
    for name, given in (("sequence_id", {}), ("pairs", {"sequence_id": ROW})):
        tables = {"sequence_id": far, "pairs": far.reshape(2, 2)} | given
        with pytest.raises(ValueError, match=rf"{name}: got sequence 1000000000000, want \[0, "):
            wf.fused_dpo_loss(**HEAD, targets=ROW, **tables, layout=LAYOUT)


def test_only_normalisers_are_added_to_normalisers() -> None:
    with pytest.raises(TypeError, match="unsupported operand"):
        wf.Normalisers(1.0, 1.0, 1.0) + 1


@pytest.mark.parametrize(
    "change, message",
    [
        ({"hidden": torch.zeros(2, 2, 3)}, r"hidden: got shape \(2, 2, 3\), want \[4, H\]"),
        ({"hidden": torch.zeros(3, 3)}, r"hidden: got shape \(3, 3\), want \[4, H\]"),
        ({"weight": torch.zeros(13, 3)}, "weight has 13 rows, want 12, the layout's vocab_size"),
        ({"targets": ROW.reshape(2, 2)}, r"targets: got shape \(2, 2\), want \[T\]"),
        ({"targets": ROW + 12}, "targets: id 12 is outside the layout"),
        ({"sequence_id": ROW[:3]}, r"sequence_id: got shape \(3,\), want \(4,\)"),
        ({"sequence_id": ROW - 1}, r"sequence_id: got sequence -1, want \[0, 2\), the length of r"),
        ({"sequence_id": ROW + 2}, r"sequence_id: got sequence 2, want \[0, 2\), the length of re"),
        ({"pairs": torch.tensor([[0, 2]])}, r"pairs: got sequence 2, want \[0, 2\), the length of"),
        ({"ref_logp": torch.zeros(2).long()}, "ref_logp: got torch.int64 .*want floats"),
        ({"ref_logp": torch.zeros(1, 2)}, r"ref_logp: .* of shape \(1, 2\), want floats \[S\]"),
        ({"ref_logp": torch.zeros(2, device="meta")}, "ref_logp: got a tensor on meta, want cpu"),
        # A log-prob of each token, as a HybridBatch takes it.
        ({"ref_logp": torch.zeros(4)}, r"ref_logp: got 4 values, as many as targets, for 2 seq"),
        ({"length_normalised": "no"}, "length_normalised: got 'no', want True or False"),
        ({"scope": None}, "scope: got None, want one of all, text, speech"),
    ],
    ids=lambda x: "" if isinstance(x, dict) else x,
)
def test_an_argument_of_the_preference_loss_is_named(change: dict, message: str) -> None:
    tables = {"targets": ROW, "sequence_id": torch.tensor([0, 0, 1, 1]), "ref_logp": torch.zeros(2)}
    good = HEAD | tables | {"pairs": torch.tensor([[0, 1]]), "layout": LAYOUT}
    wf.fused_dpo_loss(**good)
    with pytest.raises(ValueError, match=f"^{message}"):
        wf.fused_dpo_loss(**(good | change))


@pytest.mark.parametrize("device", ["cpu", "meta", torch.device("meta")], ids=str)
def test_a_batch_goes_to_a_device_by_its_name(device) -> None:
    there = batch(ref_logp=torch.zeros(4)).to(device)
    for name in ("targets", "policy_row", "anchor_row", "rewards", "ref_logp"):
        assert getattr(there, name).device == torch.device(device), name


@pytest.mark.parametrize("tables", ["cpu", "meta"])
@pytest.mark.parametrize("ref", [None, torch.zeros(2)], ids=["alone", "reference"])
def test_a_preference_loss_is_on_the_device_of_its_hidden_states(tables: str, ref) -> None:
    row, pairs = torch.tensor([0, 0, 1, 1]), torch.tensor([[0, 1]])
    away = [table.to("meta") for table in HEAD.values()]
    here = [table.to(tables) for table in (ROW, row, pairs)]

    def loss() -> torch.Tensor:
        reference = None if ref is None else ref.to(tables)
        return wf.fused_dpo_loss(*away, *here, layout=LAYOUT, ref_logp=reference).loss

    if tables == "meta" and ref is None:
        with pytest.raises(ValueError, match="ref_logp: got None with targets on meta, want"):
            loss()
    else:
        assert loss().device.type == "meta"


def test_a_reference_gets_no_gradient() -> None:
    policy, ref = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    wf.dpo_loss(policy, -policy, ref, -ref, beta=0.1).sum().backward()
    assert policy.grad is not None and ref.grad is None
    hidden = torch.zeros(4, 3, requires_grad=True)
    tables = ROW, torch.tensor([0, 0, 1, 1]), torch.tensor([[0, 1]])
    out = wf.fused_dpo_loss(hidden, HEAD["weight"], *tables, layout=LAYOUT, ref_logp=ref)
    out.loss.backward()
    assert hidden.grad is not None and ref.grad is None
