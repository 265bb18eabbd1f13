"""Advantages in place of rewards: the same loss, from rollouts in any order and of any groups."""

import random
from dataclasses import replace

import pytest
import torch

import wavalign_fast as wf
from tests.losses.formula import LAYOUT, random_batch

OF_REWARDS = {"reward", "reward_std", "frac_reward_zero_std", "missing_rewards"}


def with_gradients(batch: wf.HybridBatch, hidden, weight, **options):
    leaves = [x.clone().requires_grad_() for x in (hidden, weight)]
    out = wf.HybridObjective(LAYOUT, policy_scope="all", text_kl=0.1, gate=0.6, **options)(
        leaves[0], leaves[1], batch
    )
    out.loss.backward()
    return out, [leaf.grad for leaf in leaves]


def example(seed: int = 5) -> tuple[wf.HybridBatch, torch.Tensor, torch.Tensor]:
    batch, hidden, weight = random_batch(
        random.Random(seed), 3, 4, 2, reference=True, old=True, importance=True
    )
    return batch, hidden.float(), weight.float()


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("normalisation", ["sequence", "token"])
def test_the_advantages_of_the_rewards_give_the_loss_of_the_rewards(backend, normalisation) -> None:
    batch, hidden, weight = example()
    config = {
        "normalisation": normalisation, "clip": 0.2, "options": wf.LossOptions(backend=backend)
    }  # fmt: skip
    want, want_grads = with_gradients(batch, hidden, weight, **config)
    advantages = wf.group_advantages(batch.rewards)
    got, grads = with_gradients(
        replace(batch, rewards=None, advantages=advantages), hidden, weight, **config
    )
    assert torch.equal(got.loss, want.loss) and want.policy_loss != 0
    assert all(map(torch.equal, grads, want_grads))
    assert want.metrics.keys() - got.metrics.keys() == OF_REWARDS
    for name, value in got.metrics.items():
        assert torch.equal(value, want.metrics[name]), name
    assert {*got.totals.sums} == {*want.totals.sums}


def test_shuffled_rollouts_in_two_parts_add_up_to_the_step() -> None:
    batch, hidden, weight = example()
    want, want_grads = with_gradients(batch, hidden, weight)
    counts = wf.HybridObjective(LAYOUT, policy_scope="all", text_kl=0.1).normalisers(batch)
    advantages = wf.group_advantages(batch.rewards).reshape(-1)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    objective = wf.HybridObjective(LAYOUT, policy_scope="all", text_kl=0.1)
    leaves = [x.clone().requires_grad_() for x in (hidden, weight)]
    losses = []
    for part, rollouts in enumerate(order.split(7)):
        row = torch.full_like(batch.policy_row, -1)
        for place, rollout in enumerate(rollouts):
            row[batch.policy_row == rollout] = place
        own = replace(
            batch,
            policy_row=row,
            anchor_row=batch.anchor_row if part == 1 else torch.full_like(batch.anchor_row, -1),
            rewards=None,
            advantages=advantages[rollouts],
        )
        out = objective(*leaves, own, rl_weight=0.6, normalisers=counts)
        out.loss.backward()
        losses.append(out.loss.detach())
    torch.testing.assert_close(sum(losses), want.loss, rtol=1e-5, atol=1e-6)
    for leaf, grad in zip(leaves, want_grads, strict=True):
        torch.testing.assert_close(leaf.grad, grad, rtol=1e-4, atol=1e-6)


def test_padded_rows_take_advantages_of_each_row() -> None:
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(6, 12, (5, 9), generator=generator)
    mask = torch.ones((4, 4), dtype=torch.int64)
    rewards = torch.tensor([[1.0, 4.0], [2.0, 5.0]])
    of_rewards = wf.HybridBatch.from_padded(ids, mask, ids, rewards, torch.tensor([3, 5]))
    advantages = wf.group_advantages(rewards).reshape(-1)
    given = wf.HybridBatch.from_padded(
        ids, mask, ids, None, torch.tensor([3, 3, 5, 5]), advantages=advantages
    )
    for name in ("targets", "policy_row", "anchor_row"):
        assert torch.equal(getattr(given, name), getattr(of_rewards, name))
    assert given.rewards is None and torch.equal(given.advantages, advantages)


def test_what_does_not_fit_is_refused_with_what_was_given() -> None:
    batch, hidden, weight = example()
    good = wf.group_advantages(batch.rewards)
    for rewards, advantages, message in (
        (None, None, "rewards and advantages: got neither"),
        (batch.rewards, good, "rewards and advantages: got both"),
        (None, good.long(), r"advantages: got torch.int64 of shape \(3, 4\), want floats \[N\]"),
        (None, good.reshape(3, 2, 2), r"advantages: got torch.float32 of shape \(3, 2, 2\)"),
        (None, torch.full((12,), torch.nan), "advantages of rollout 0: got nan, want a finite"),
        (None, good.reshape(-1)[:3], r"policy_row: got 11, want -1 or a row in \[0, N = 3\)"),
        (None, [0.5] * 12, "advantages: got a list, want a torch.Tensor"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(batch, rewards=rewards, advantages=advantages)
    gated = wf.HybridObjective(LAYOUT)
    given = replace(batch, rewards=None, advantages=good)
    with pytest.raises(ValueError, match=r"batch\.rewards: got None, want the rewards that"):
        gated(hidden, weight, given)
    assert torch.isfinite(gated(hidden, weight, given, rl_weight=0.5).loss)
    assert gated.gate.value is None
