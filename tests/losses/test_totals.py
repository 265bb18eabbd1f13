"""Metrics as sums and counts: the parts of a step add up to the step, on any rank."""

import math
import random

import pytest
import torch

import wavalign_fast as wf
from tests.losses.formula import LAYOUT, Formula, grown, random_batch

REFERENCE = wf.LossOptions(backend="reference")
PROMPTS, GROUP, ANCHORS = 3, 4, 5
SETTINGS = {
    "policy_scope": "all", "speech_weight": 0.5, "text_kl": 0.1, "speech_kl": 0.2,
    "clip": (0.2, 0.3),
}  # fmt: skip
NOT_SUMS = {"effective_rl_weight", "effective_sft_weight", "reward", "reward_std",
            "frac_reward_zero_std", "missing_rewards"}  # fmt: skip


def dealt(batch: wf.HybridBatch, parts: int) -> list[tuple[wf.HybridBatch, torch.Tensor]]:
    """Rows dealt to parts whatever their group, the whole rewards in each, and the positions.

    The last part has no row.
    """
    found = []
    for part in range(parts):
        rollout = (batch.policy_row >= 0) & (batch.policy_row % (parts - 1) == part)
        shown = (batch.anchor_row >= 0) & (batch.anchor_row % (parts - 1) == part)
        at = (rollout | shown).nonzero().flatten()
        tables = (batch.targets, batch.policy_row, batch.anchor_row)
        found.append((
            wf.HybridBatch(
                *(t[at] for t in tables), batch.rewards, batch.ref_logp[at], batch.old_logp[at]
            ),
            at,
        ))  # fmt: skip
    return found


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("normalisation", ["sequence", "token"])
def test_parts_of_split_groups_add_up_to_the_step(normalisation: str, level: str) -> None:
    batch, hidden, weight = random_batch(
        random.Random(1), PROMPTS, GROUP, ANCHORS, reference=True, old=True
    )
    objective = wf.HybridObjective(
        LAYOUT, **SETTINGS, normalisation=normalisation, importance_sampling_level=level,
        gate=0.5, options=REFERENCE,
    )  # fmt: skip
    of_step = objective.normalisers(batch)
    whole = objective(hidden, weight, batch)
    outs = [
        objective(hidden[at], weight, part, rl_weight=0.5, normalisers=of_step)
        for part, at in dealt(batch, 4)
    ]
    names = [*whole.totals.sums]
    assert all([*out.totals.sums] == names for out in outs)
    got, want = sum(out.totals for out in outs).means(), whole.totals.means()
    assert {*got} == {*whole.metrics} - NOT_SUMS
    in_no_row = int((batch.policy_row < 0).logical_and(batch.anchor_row < 0).sum())
    want["skipped_rows"] = want["skipped_rows"] - in_no_row
    for name, value in got.items():
        torch.testing.assert_close(value, want[name], rtol=1e-12, atol=1e-12, msg=name)
        # Only the entropy has another mean.
        if not name.endswith("entropy") and name != "skipped_rows":
            torch.testing.assert_close(value, whole.metrics[name].double(), rtol=1e-6, atol=1e-12)


def test_the_means_are_those_of_their_formula() -> None:
    batch, hidden, weight = random_batch(
        random.Random(2), PROMPTS, GROUP, ANCHORS, reference=True, old=True
    )
    out = wf.HybridObjective(LAYOUT, **SETTINGS, gate=0.5, options=REFERENCE)(hidden, weight, batch)
    got = {name: value.item() for name, value in out.totals.means().items()}
    logp = Formula(batch, hidden, weight, SETTINGS).logp
    log_all = torch.log_softmax(hidden @ weight.T, -1)
    entropy = -(log_all.exp() * log_all).sum(-1)
    gap = batch.ref_logp.double() - logp
    k = torch.stack([grown(x) - x - 1 for x in gap])
    speech = LAYOUT.classify(batch.targets).bool()
    for name, kl_name, where in (
        ("text_entropy", "text_kl", ~speech), ("speech_entropy", "speech_kl", speech),
        ("total_entropy", "kl", speech | ~speech),
    ):  # fmt: skip
        where = where & (batch.policy_row >= 0)
        assert got[name] == pytest.approx(entropy[where].mean().item(), rel=1e-12)
        rows = [k[where & (batch.policy_row == row)] for row in range(PROMPTS * GROUP)]
        means = [row.mean().item() for row in rows if len(row)]
        assert got[kl_name] == pytest.approx(sum(means) / (PROMPTS * GROUP), rel=1e-12)
    tokens = int((batch.policy_row >= 0).sum())
    assert got["completion_length"] == pytest.approx(tokens / (PROMPTS * GROUP))


def test_parts_with_their_own_prompts_add_up_too() -> None:
    """Each part has the rewards of its own prompts; the normalisers are the sum of theirs."""
    row = torch.tensor([0, 0, 1])
    ids = torch.tensor([1, 13, 2])
    ref = torch.full((3,), -1.0)
    parts = [
        wf.HybridBatch(ids, row, row * 0 - 1, torch.tensor(rewards), ref)
        for rewards in ([[1.0, 2.0]], [[3.0, 1.0], [2.0, 2.0]])
    ]
    objective = wf.HybridObjective(
        LAYOUT, policy_scope="all", normalisation="token", gate=1.0, options=REFERENCE
    )
    total = sum(objective.normalisers(part) for part in parts)
    hidden, weight = torch.randn(3, 4), torch.randn(24, 4)
    outs = [objective(hidden, weight, part, normalisers=total) for part in parts]
    means = sum(out.totals for out in outs).means()
    assert means["completion_length"] == pytest.approx(6 / 6)
    want = (2 * outs[0].metrics["kl"] + 4 * outs[1].metrics["kl"]) / 6
    torch.testing.assert_close(means["kl"], want)


def test_what_was_not_counted_is_nan_and_no_number() -> None:
    row = torch.zeros(1, dtype=torch.long)
    batch = wf.HybridBatch(row + 1, row, row - 1, torch.tensor([[1.0, 2.0]]))
    out = wf.HybridObjective(LAYOUT, policy_scope="all", gate=0.5)(
        torch.zeros(1, 4), torch.zeros(24, 4), batch
    )
    means = out.totals.means()
    assert math.isnan(means["speech_entropy"])
    assert means["text_entropy"].item() == pytest.approx(math.log(24))


def test_a_vector_carries_the_values_of_all_names() -> None:
    def number(value: float) -> torch.Tensor:
        return torch.tensor(value, dtype=torch.float64)

    mine = wf.MetricTotals({"b": number(6), "a": number(1)}, {"b": number(4)})
    # The other rank met the names in another order.
    other = wf.MetricTotals({"a": number(2), "b": number(3)}, {"b": number(2)})
    assert mine.as_vector().tolist() == [1, 6, 4]
    summed = mine.with_vector(mine.as_vector() + other.as_vector())
    assert summed.means() == {"b": 9 / 6, "a": 3} == (mine + other).means()
    assert wf.MetricTotals({}).with_vector(wf.MetricTotals({}).as_vector()).means() == {}
    with pytest.raises(ValueError, match=r"vector: got shape \(2,\), want \[3\]"):
        mine.with_vector(torch.zeros(2))
    with pytest.raises(ValueError, match=r"counts: got \['c'\], want names that are in sums"):
        wf.MetricTotals({"b": number(1)}, {"c": number(1)})
    with pytest.raises(ValueError, match=r"metrics \['b'\]: got a count in one part only"):
        mine + wf.MetricTotals({"b": number(1)})
    joined = mine + wf.MetricTotals({"c": number(8)}, {"c": number(2)})
    assert joined.means() == {"b": 1.5, "a": 1, "c": 4}


def test_metrics_of_rewards_come_from_the_whole_rewards() -> None:
    rewards = torch.tensor([[1.0, 4.0], [3.0, 3.0], [math.nan, 2.0]])
    row = torch.zeros(1, dtype=torch.long)
    objective = wf.HybridObjective(LAYOUT, gate=0.5, advantage_std="sample")
    out = objective(torch.zeros(1, 4), torch.zeros(24, 4),
                    wf.HybridBatch(row, row, row - 1, rewards))  # fmt: skip
    got = objective.reward_metrics(rewards)
    assert {*got} == {"reward", "reward_std", "frac_reward_zero_std", "missing_rewards"}
    for name, value in got.items():
        assert torch.equal(value, out.metrics[name]), name
