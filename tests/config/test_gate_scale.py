"""The gate's settings follow from the scale of the rewards."""

import pytest
import torch
import yaml

from wavalign_fast.config.gate import GateConfig, gate_of_scale
from wavalign_fast.config.layers import dump_config, parse_overrides, resolve_config
from wavalign_fast.errors import UserError
from wavalign_fast.losses import MixingGate, ModalityLayout
from wavalign_fast.train.objective import build_objective

BASE = {"recipe": "toy"}


def gate(*overrides: str) -> GateConfig:
    return resolve_config([BASE, parse_overrides(overrides)]).loss.gate


def test_the_defaults_are_those_of_one_to_five():
    assert GateConfig() == GateConfig(scale=(1.0, 5.0)) == gate()
    assert gate_of_scale(1.0, 5.0) == {"slope": 5.0, "threshold": 3.0, "variance_scale": 4.0}


@pytest.mark.parametrize("scale", [(0.0, 1.0), (-1.0, 1.0), (0.0, 100.0)])
def test_lambda_is_the_same_on_every_scale(scale):
    low, high = scale
    found = GateConfig(scale=scale)
    rewards = torch.tensor([[1.0, 5.0, 4.0, 2.0], [3.0, 3.5, 1.0, 2.0]])
    settings = found.model_dump(exclude={"scale"})
    there = MixingGate(**settings)(low + (high - low) * (rewards - 1) / 4)
    torch.testing.assert_close(there, MixingGate()(rewards))


def test_what_is_given_wins_over_the_scale():
    found = gate("loss.gate.scale=[0, 1]", "loss.gate.threshold=0.7")
    assert (found.threshold, found.variance_scale, found.slope) == (0.7, 0.25, 20.0)


def test_a_written_configuration_reads_back_as_the_same():
    config = resolve_config([BASE, parse_overrides(["loss.gate.scale=[0, 1]"])])
    assert resolve_config([yaml.safe_load(dump_config(config))]) == config


@pytest.mark.parametrize("scale", ["[1, 1]", "[5, 1]", "[0, 1e9]", "[0]", "x", "[0, .nan]"])
def test_what_is_no_scale_is_refused(scale):
    with pytest.raises(UserError, match=r"loss\.gate(\.scale)?: "):
        gate(f"loss.gate.scale={scale}")


def test_the_objective_gets_them():
    layout = ModalityLayout(vocab_size=8, speech=((4, 8),))
    config = resolve_config([BASE, parse_overrides(["loss.gate.scale=[0, 1]"])])
    made = build_objective(config.loss, layout, kl=False).gate
    assert (made.slope, made.threshold, made.variance_scale) == (20.0, 0.5, 0.25)
