"""Every metric of a step and of a preference loss, on batches small enough to check by hand."""

import math

import pytest
import torch

import wavalign_fast as wf
from tests.losses.formula import LAYOUT, H, V

NAN = float("nan")
TEXT_ID, SPEECH_ID = 1, 13
LOG_V = math.log(V)


def batch() -> wf.HybridBatch:
    """Three prompts of two rollouts; the second's rewards are equal, the third's are missing.

    Rollout 0: text, speech; rollout 1: two of text; 2: text; 3: nothing; 4: speech; 5: nothing.
    A demonstration of text, speech, speech; a position in no row.
    """
    rollouts = [(0, TEXT_ID), (0, SPEECH_ID), (1, TEXT_ID), (1, TEXT_ID), (2, TEXT_ID),
                (4, SPEECH_ID)]  # fmt: skip
    shown = [TEXT_ID, SPEECH_ID, SPEECH_ID]
    return wf.HybridBatch(
        torch.tensor([token for _, token in rollouts] + shown + [TEXT_ID]),
        torch.tensor([row for row, _ in rollouts] + [-1] * 4),
        torch.tensor([-1] * len(rollouts) + [0] * 3 + [-1]),
        torch.tensor([[1.0, 4.0], [3.0, 3.0], [NAN, NAN]]),
        # The head is all zeros: every log-prob is -log V.
        ref_logp=torch.full((10,), 1.0 - LOG_V),
        old_logp=torch.full((10,), -LOG_V - math.log(2.0)),
    )


def metrics(**settings) -> dict[str, float]:
    objective = wf.HybridObjective(LAYOUT, gate=0.25, **settings)
    out = objective(torch.zeros(10, H), torch.zeros(V, H), batch())
    assert all(value.dim() == 0 for value in out.metrics.values())
    return {name: value.item() for name, value in out.metrics.items()}


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_all_tokens(backend: str) -> None:
    found = metrics(
        policy_scope="all", clip=(0.2, 0.3), advantage_std="sample", text_kl=0.1,
        options=wf.LossOptions(backend=backend),
    )  # fmt: skip
    k = math.e - 2.0
    wanted = {
        "reward": (2.5 + 3.0) / 2,
        "reward_std": (math.sqrt(4.5) + 1e-4 + 1e-4) / 2,
        "frac_reward_zero_std": 0.5,
        "missing_rewards": 2,
        "completion_length": 6 / 6,
        "policy_text_tokens": 4,
        "policy_speech_tokens": 2,
        "anchor_text_tokens": 1,
        "anchor_speech_tokens": 2,
        "skipped_rows": 1,
        # ρ is 2: clipped above in rollout 1 alone, where A > 0; of weights that sum to 6.
        "clip_ratio/low_mean": 0,
        "clip_ratio/high_mean": 2 / 6,
        "clip_ratio/region_mean": 2 / 6,
        "kl": k * 4 / 6,  # four of six rollouts have a token
        "text_kl": k * 3 / 6,
        "speech_kl": k * 2 / 6,
        # Means over the groups that have a token of the class.
        "total_entropy": LOG_V,
        "text_entropy": LOG_V,
        "speech_entropy": LOG_V,
        "anchor_text_entropy": LOG_V,
        "anchor_speech_entropy": LOG_V,
        # Speech of rollout 4, whose reward is missing; text keeps its β.
        "zero_gradient_rows": 1,
        "effective_rl_weight": 0.25,
        "effective_sft_weight": 0.75,
        "sft_loss": LOG_V,
        "kl_loss": 0,
    }
    for name, value in wanted.items():
        assert found.pop(name) == pytest.approx(value, rel=1e-5, abs=1e-6), name
    assert set(found) == {"rl_loss", "combined_loss"}
    assert found["combined_loss"] == pytest.approx(0.25 * found["rl_loss"] + 0.75 * LOG_V)


def test_a_clipped_fraction_below_and_of_sequences() -> None:
    """ρ is 1/2: clipped below in rollout 0 alone, where A < 0."""
    low = batch()
    old = torch.full((10,), -LOG_V + math.log(2.0))
    low = wf.HybridBatch(**{**low.__dict__, "old_logp": old})
    for level, fraction in (("token", 2 / 6), ("sequence", 1 / 4)):
        objective = wf.HybridObjective(
            LAYOUT, policy_scope="all", clip=0.2, gate=0.5, importance_sampling_level=level
        )
        found = objective(torch.zeros(10, H), torch.zeros(V, H), low).metrics
        assert found["clip_ratio/low_mean"] == pytest.approx(fraction)
        assert found["clip_ratio/high_mean"] == 0


def test_the_fraction_of_groups_with_equal_rewards() -> None:
    row = torch.tensor([0])
    rewards = torch.tensor([[1.0, 2.0], [3.0, 3.0], [1.0, 4.0], [NAN, 2.0], [NAN, NAN]])
    out = wf.HybridObjective(LAYOUT, gate=0.5)(
        torch.zeros(1, H), torch.zeros(V, H), wf.HybridBatch(row, row, row - 1, rewards)
    )
    assert out.metrics["frac_reward_zero_std"] == 2 / 4
    rewards[3, 0] = 3.0
    out = wf.HybridObjective(LAYOUT, gate=0.5)(
        torch.zeros(1, H), torch.zeros(V, H), wf.HybridBatch(row, row, row - 1, rewards)
    )
    assert out.metrics["frac_reward_zero_std"] == 1 / 4


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_the_entropy_of_demonstrations_is_that_of_the_anchored_tokens(backend: str) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(10, H, generator=generator)
    weight = torch.randn(V, H, generator=generator)
    log_all = torch.log_softmax(hidden.double() @ weight.double().T, -1)
    entropy = -(log_all.exp() * log_all).sum(-1)
    shown, speech = batch().anchor_row >= 0, LAYOUT.classify(batch().targets).bool()

    def found(scope: str) -> dict[str, torch.Tensor]:
        objective = wf.HybridObjective(
            LAYOUT, anchor_scope=scope, gate=0.25, options=wf.LossOptions(backend=backend)
        )
        out = objective(hidden, weight, batch())
        totals = out.totals.means()
        for name in ("anchor_text_entropy", "anchor_speech_entropy"):
            if not torch.isnan(totals[name]):
                assert totals[name] == pytest.approx(out.metrics[name].item(), rel=1e-6)
        return out.metrics | {"mean of nothing": totals["anchor_text_entropy"]}

    text, said = (entropy[shown & where].mean().item() for where in (~speech, speech))
    both = found("all")
    assert both["anchor_text_entropy"] == pytest.approx(text, rel=1e-5)
    assert both["anchor_speech_entropy"] == pytest.approx(said, rel=1e-5)
    alone = found("speech")
    assert alone["anchor_text_entropy"] == 0 and torch.isnan(alone["mean of nothing"])
    assert alone["anchor_speech_entropy"] == both["anchor_speech_entropy"]


@pytest.mark.parametrize("scope, absent", [("text", "speech"), ("speech", "text")])
def test_a_class_that_is_not_multiplied_has_no_statistics(scope: str, absent: str) -> None:
    found = metrics(policy_scope=scope)
    assert {f"{scope}_kl", f"{scope}_entropy"} <= set(found)
    assert not {f"{absent}_kl", f"{absent}_entropy", "kl", "total_entropy"} & set(found)


def test_preference_metrics() -> None:
    """Sequence s has s + 1 tokens of log-prob -log V; the margins have both signs."""
    targets = torch.tensor([1, 2, 2, 6, 6, 6, 1, 1, 1, 1])
    sequence = torch.arange(4).repeat_interleave(torch.arange(1, 5))
    pairs = torch.tensor([[0, 1], [2, 3], [3, 0]])
    ref = torch.tensor([-1.0, -2.0, -3.0, -4.0])
    out = wf.fused_dpo_loss(
        torch.zeros(10, H), torch.zeros(V, H), targets, sequence, pairs,
        layout=LAYOUT, beta=0.5, ref_logp=ref,
    )  # fmt: skip
    of = [0.5 * (-LOG_V * (s + 1) - ref[s].item()) for s in range(4)]
    chosen, rejected = [of[c] for c, _ in pairs.tolist()], [of[r] for _, r in pairs.tolist()]
    margins = [c - r for c, r in zip(chosen, rejected, strict=True)]
    assert min(margins) < 0 < max(margins)

    def mean(values: list[float]) -> float:
        return sum(values) / 3

    wanted = {
        "chosen_logp": mean([-LOG_V * (c + 1) for c, _ in pairs.tolist()]),
        "rejected_logp": mean([-LOG_V * (r + 1) for _, r in pairs.tolist()]),
        "ref_chosen_logp": mean([-1.0, -3.0, -4.0]),
        "ref_rejected_logp": mean([-2.0, -4.0, -1.0]),
        "rewards/chosen": mean(chosen),
        "rewards/rejected": mean(rejected),
        "rewards/margins": mean(margins),
        "rewards/accuracies": mean([float(m > 0) for m in margins]),
        "pairs": 3,
        "skipped_pairs": 0,
        "loss": mean([math.log1p(math.exp(-m)) for m in margins]),
    }
    assert set(out.metrics) == set(wanted)
    for name, value in wanted.items():
        assert out.metrics[name].item() == pytest.approx(value, rel=1e-5), name


@pytest.mark.parametrize("scope, count", [("all", 3), ("text", 1), ("speech", 1)])
def test_pairs_are_counted_in_their_scope(scope: str, count: int) -> None:
    """Sequences of text, text, speech, speech; pairs of one class each, and a mixed one."""
    targets = torch.tensor([TEXT_ID, TEXT_ID, SPEECH_ID, SPEECH_ID])
    sequence, pairs = torch.arange(4), torch.tensor([[0, 1], [2, 3], [0, 2]])
    assert wf.count_pairs(targets, sequence, pairs, layout=LAYOUT, scope=scope) == count
    out = wf.fused_dpo_loss(
        torch.zeros(4, H), torch.zeros(V, H), targets, sequence, pairs, layout=LAYOUT, scope=scope
    )
    assert out.metrics["pairs"] == count
