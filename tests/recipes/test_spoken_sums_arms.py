"""The recipe's YAML: every arm resolves and does what its name says."""

from pathlib import Path

import pytest
import yaml

pytest.importorskip("pydantic")

from wavalign_fast.config.layers import choose_arm, resolve_config
from wavalign_fast.recipes import spoken_sums
from wavalign_fast.recipes.spoken_sums.task import SpokenSums

DIRECTORY = Path(spoken_sums.__file__).parent
RECIPE = yaml.safe_load((DIRECTORY / "recipe.yaml").read_text())
ARMS = yaml.safe_load((DIRECTORY / "arms.yaml").read_text())


def resolve(arm):
    return resolve_config([RECIPE, choose_arm(ARMS, arm)])


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_resolves_and_its_task_can_be_made(arm):
    config = resolve(arm)
    SpokenSums(**config.task)
    assert config.rollout.prompts * config.rollout.group_size == 64


@pytest.mark.parametrize(
    ("arm", "rollouts", "anchor", "reference"),
    [
        ("wavalign", True, True, False),
        ("released", True, True, False),
        ("rl-text", True, False, False),
        ("rl-all", True, False, False),
        ("sft-imperfect", False, True, False),
        ("sft-gold", False, True, False),
        ("on-policy", True, False, True),
    ],
)
def test_an_arm_needs_what_its_name_says(arm, rollouts, anchor, reference):
    config = resolve(arm)
    needs = (config.needs_rollouts, config.needs_anchor, config.needs_reference)
    assert needs == (rollouts, anchor, reference)


def test_only_the_gold_arm_sees_gold_answers():
    gold = {arm for arm in ARMS if resolve(arm).task["demonstrations"] == "gold"}
    assert gold == {"sft-gold"}
