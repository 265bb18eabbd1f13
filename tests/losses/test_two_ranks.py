"""Two ranks of a gloo group: this process and a subprocess."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import wavalign_fast as wf
from tests.losses import two_ranks

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, dict]:
    """The results of each rank."""
    folder = tmp_path_factory.mktemp("ranks")
    program = (
        "import torch; from tests.losses import two_ranks;"
        f"torch.save(two_ranks.run(1, {str(folder / 'store')!r}), {str(folder / 'rank 1')!r})"
    )
    other = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    try:
        mine = two_ranks.run(0, str(folder / "store"))
        assert other.wait(timeout=120) == 0
    finally:
        other.kill()
        other.wait()
    return mine, torch.load(folder / "rank 1")


def test_both_ranks_have_the_lambda_of_all_rewards(found: tuple[dict, dict]) -> None:
    gate = wf.MixingGate(ema=0.5, initial=0.1)
    for step in (0, 1):
        want = gate(two_ranks.REWARDS.flatten(0, 1) + step)
        for rank in found:
            torch.testing.assert_close(rank[f"lambda {step}"], want)


def test_whole_rewards_need_no_collective(found: tuple[dict, dict]) -> None:
    want = wf.MixingGate(ema=0.5, initial=0.1)(two_ranks.REWARDS.flatten(0, 1))
    for rank in found:
        assert torch.equal(rank["lambda of whole rewards"], want)


@pytest.mark.parametrize("name", ["gate", "objective"])
def test_both_ranks_refuse_an_infinite_reward_of_one(found: tuple[dict, dict], name: str) -> None:
    """If one rank raised alone, the other would wait in the all-reduce until its timeout."""
    without, with_one = found
    assert without[name].startswith("rewards: got 1 infinite on other ranks, want finite rewards")
    assert with_one[name].startswith("rewards[1, 1]: got inf, want a finite reward")


def test_a_refused_step_does_not_move_the_gate(found: tuple[dict, dict]) -> None:
    gate = wf.MixingGate(ema=0.5, initial=0.1)
    for step in (0, 1, 2):
        want = gate(two_ranks.REWARDS.flatten(0, 1) + step)
    for rank in found:
        torch.testing.assert_close(rank["lambda after"], want)


@pytest.mark.parametrize("name", ["hidden", "weight", "bias"])
def test_the_advice_for_a_sharded_operand_keeps_every_ranks_gradient(found, name) -> None:
    hidden, weight, bias, targets = two_ranks.operands()
    leaves = {"hidden": hidden, "weight": weight, "bias": bias}
    for leaf in leaves.values():
        leaf.requires_grad_()
    two_ranks.loss_of(hidden, weight, bias, targets).backward()
    for rank in found:
        torch.testing.assert_close(rank[f"grad of {name}"], leaves[name].grad)
