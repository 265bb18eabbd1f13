"""Denominators passed in: micro-batches and ranks add up to the whole step."""

import random

import pytest
import torch

import wavalign_fast as wf
from tests.losses.formula import LAYOUT, H, V, random_batch
from wavalign_fast.losses.normalisers import normalised
from wavalign_fast.ops import LogProb

REFERENCE = wf.LossOptions(backend="reference")
PROMPTS, GROUP, ANCHORS = 4, 3, 5


def part_of(batch: wf.HybridBatch, first: int, prompts: int, anchors: set[int]):
    """The prompts [first, first + prompts) and some anchors as a batch, and its positions."""
    rollouts = range(first * GROUP, (first + prompts) * GROUP)
    policy, anchor = batch.policy_row.tolist(), batch.anchor_row.tolist()
    keep = [i for i, (p, a) in enumerate(zip(policy, anchor, strict=True))
            if p in rollouts or a in anchors]  # fmt: skip
    at = torch.tensor(keep, dtype=torch.long)
    row = batch.policy_row[at]
    return wf.HybridBatch(
        batch.targets[at],
        torch.where(row < 0, -1, row - rollouts.start),
        batch.anchor_row[at],
        batch.rewards[first : first + prompts],
        batch.ref_logp[at],
        batch.old_logp[at],
    ), at


def problem(seed: int):
    batch, hidden, weight = random_batch(
        random.Random(seed), PROMPTS, GROUP, ANCHORS, reference=True, old=True
    )
    # The second part has no anchors, the third no rollouts.
    split = ((0, 2, {0, 3}), (2, 2, set()), (4, 0, {1, 2, 4}))
    return batch, hidden, weight, [part_of(batch, *part) for part in split]


def gradients(loss: torch.Tensor, leaves) -> torch.Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, leaves)])


@pytest.mark.parametrize("normalisation", ["sequence", "token"])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("kl_scope", ["policy", "completion"])
@pytest.mark.parametrize("seed", range(3))
def test_micro_batches_add_up_to_the_step(normalisation, level, kl_scope, seed) -> None:
    batch, hidden, weight, parts = problem(seed)
    objective = wf.HybridObjective(
        LAYOUT, policy_scope="all", anchor_scope="speech", speech_weight=0.5, text_kl=0.1,
        speech_kl=0.2, kl_scope=kl_scope, clip=(0.2, 0.3), importance_sampling_level=level,
        normalisation=normalisation, options=REFERENCE,
    )  # fmt: skip
    leaves = hidden.requires_grad_(), weight.requires_grad_()
    whole = objective(hidden, weight, batch)
    want = gradients(whole.loss, leaves)

    total = sum(objective.normalisers(part) for part, _ in parts)
    outs = [
        objective(
            hidden[at], weight, part, rl_weight=whole.rl_weight, normalisers=total
        )
        for part, at in parts
    ]  # fmt: skip
    torch.testing.assert_close(sum(out.loss for out in outs), whole.loss, rtol=1e-12, atol=1e-12)
    got = sum(gradients(out.loss, leaves) for out in outs)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12 * want.abs().max().item())
    # Averaged over three ranks, with the counts divided by three.
    per_rank = wf.Normalisers(total.policy / 3, total.anchor / 3, total.kl / 3)
    ranks = [
        objective(hidden[at], weight, part, rl_weight=whole.rl_weight, normalisers=per_rank).loss
        for part, at in parts
    ]
    torch.testing.assert_close(sum(ranks) / 3, whole.loss, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("normalisation", ["sequence", "token"])
def test_a_batchs_own_normalisers_are_the_default(normalisation) -> None:
    batch, hidden, weight, _ = problem(0)
    objective = wf.HybridObjective(
        LAYOUT, gate=0.5, normalisation=normalisation, text_kl=0.1, kl_scope="completion",
        options=REFERENCE,
    )  # fmt: skip
    own = objective.normalisers(batch)
    numbers = wf.Normalisers(float(own.policy), float(own.anchor), float(own.kl))
    loss = objective(hidden, weight, batch).loss
    for given in (own, numbers):
        assert torch.equal(objective(hidden, weight, batch, normalisers=given).loss, loss)


def test_normalisers_count_rollouts_demonstrations_and_weights() -> None:
    """Rollouts: 2 text and 1 speech token, 1 speech token, none; demonstrations likewise."""
    batch = wf.HybridBatch(
        torch.tensor([1, 2, 13, 13, 1, 14, 14]),
        torch.tensor([0, 0, 0, 1, -1, -1, -1]),
        torch.tensor([-1, -1, -1, -1, 0, 0, 5]),
        torch.tensor([[1.0, 2.0, 3.0]]),
    )
    settings = {"text_weight": 2.0, "anchor_text_weight": 0.5}

    def counts(**more) -> list[float]:
        made = wf.HybridObjective(LAYOUT, **settings, **more).normalisers(batch)
        return [value.item() for value in (made.policy, made.anchor, made.kl)]

    assert counts() == [3, 2, 3]
    assert counts(anchor_scope="text") == [3, 1, 3]
    assert counts(normalisation="token") == [4, 2.5, 4]
    assert counts(normalisation="token", policy_scope="all", anchor_scope="speech") == [6, 2, 4]


@pytest.mark.parametrize("normalisation", ["sequence", "token"])
def test_zeros_divide_by_one(normalisation) -> None:
    """A step without rollouts and demonstrations has a finite loss, which is 0."""
    objective = wf.HybridObjective(LAYOUT, gate=0.5, normalisation=normalisation)
    row = torch.full((2,), -1)
    batch = wf.HybridBatch(row + 2, row, row, torch.zeros(0, 2))
    own = objective.normalisers(batch)
    assert [own.policy, own.anchor, own.kl] == [0, 0, 0]
    hidden = torch.randn(2, H, requires_grad=True)
    out = objective(hidden, torch.randn(V, H), batch, normalisers=own + own)
    out.loss.backward()
    assert out.loss == 0 and not hidden.grad.any()


@pytest.mark.parametrize("value", [0, 0.0, -1.0, float("nan"), float("inf"), "2", True])
def test_a_number_that_is_not_above_0_is_refused(value) -> None:
    with pytest.raises(
        ValueError, match=f"normalisers.anchor: got {value!r}, want a finite number"
    ):
        wf.Normalisers(1.0, value, 1.0)
    with pytest.raises(ValueError, match=f"normaliser: got {value!r}, want a finite number > 0"):
        dpo(torch.zeros(1, 4), normaliser=value)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), -float("inf")])
def test_a_tensor_that_is_negative_or_not_finite_is_refused(value) -> None:
    count = torch.tensor(value)
    with pytest.raises(ValueError, match=rf"normalisers.anchor: got {value}, want >= 0 and finite"):
        wf.Normalisers(1.0, count, 1.0)
    with pytest.raises(ValueError, match=f"normaliser: got {value}, want >= 0 and finite"):
        dpo(torch.zeros(1, 4), normaliser=count)


def test_an_unchecked_nan_shows_in_the_loss() -> None:
    """A count on a GPU is not checked, for that would be a host sync."""
    assert torch.isnan(normalised(torch.ones(2), torch.tensor(float("nan")))).all()
    assert torch.equal(normalised(torch.ones(2), torch.tensor(0)), torch.ones(2))


def test_a_table_of_normalisers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"normalisers.kl: got shape \(2,\), want a number or 0-d"):
        wf.Normalisers(1.0, 1.0, torch.ones(2))


def dpo(hidden: torch.Tensor, *, sequences=(0, 1), pairs=((0, 1),), **more) -> wf.DPOOutput:
    targets = torch.tensor([1, 2, 13, 1, 2, 6])[: hidden.shape[0]]
    weight = torch.arange(V * 4.0, dtype=torch.float64).reshape(V, 4).sin().to(hidden)
    return wf.fused_dpo_loss(
        hidden, weight, targets, torch.tensor(sequences)[: hidden.shape[0]], torch.tensor(pairs),
        layout=LAYOUT, options=REFERENCE, **more,
    )  # fmt: skip


def test_pairs_of_micro_batches_add_up() -> None:
    """Sequence 2 has no text, so its pair is left out."""
    hidden = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    sequences, pairs = (0, 1, 2, 3, 4, 5), ((0, 1), (2, 3), (4, 5), (0, 5))
    whole = dpo(hidden, sequences=sequences, pairs=pairs)
    want = gradients(whole.loss, [hidden])
    targets = torch.tensor([1, 2, 13, 1, 2, 6])
    parts = pairs[:2], pairs[2:]
    counts = [
        wf.count_pairs(targets, torch.tensor(sequences), torch.tensor(part), layout=LAYOUT)
        for part in parts
    ]
    assert [int(count) for count in counts] == [1, 2]
    for total in (sum(counts), 3.0):
        outs = [dpo(hidden, sequences=sequences, pairs=p, normaliser=total) for p in parts]
        loss = sum(out.loss for out in outs)
        torch.testing.assert_close(loss, whole.loss, rtol=1e-12, atol=0)
        torch.testing.assert_close(gradients(loss, [hidden]), want, rtol=1e-12, atol=1e-15)
        means = sum(out.totals for out in outs).means()
        assert {*means} == {*whole.metrics} and means["skipped_pairs"] == 1
        for name, value in means.items():
            torch.testing.assert_close(value, whole.metrics[name].double(), rtol=1e-12, atol=0)


def test_no_pair_and_a_count_of_zero() -> None:
    hidden = torch.randn(2, 4, requires_grad=True)
    out = dpo(hidden, sequences=(0, 1), pairs=((0, 1),), scope="speech",
              normaliser=torch.tensor(0))  # fmt: skip
    out.loss.backward()
    assert out.loss == 0 and not hidden.grad.any()


@pytest.mark.parametrize("normalisation", ["sequence", "token"])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("kl_scope", ["policy", "completion"])
def test_there_is_no_host_sync(normalisation, level, kl_scope) -> None:
    """On meta tensors, which have no values: reading one raises."""
    row, logp = torch.zeros(6, dtype=torch.long, device="meta"), torch.zeros(6, device="meta")
    batch = wf.HybridBatch(row, row, row, torch.zeros(1, 2, device="meta"), logp, logp)
    objective = wf.HybridObjective(
        LAYOUT, policy_scope="all", text_kl=0.1, clip=0.2, kl_scope=kl_scope,
        importance_sampling_level=level, normalisation=normalisation,
    )  # fmt: skip
    total = sum(objective.normalisers(part) for part in (batch, batch))
    leaf = logp.clone().requires_grad_()
    scores = LogProb(leaf, None, leaf)
    rl_weight = torch.zeros((), device="meta")
    objective.combine(
        batch, objective.token_weights(batch), scores, rl_weight, total
    ).loss.backward()
    assert total.policy.device.type == "meta" and leaf.grad.shape == (6,)
    with pytest.raises(RuntimeError, match="meta tensors"):
        total.policy.item()
