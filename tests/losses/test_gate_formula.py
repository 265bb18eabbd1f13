"""The gate's formula: the paper's values, smoothing and missing rewards."""

import pytest
import torch

import wavalign_fast as wf

NAN = float("nan")


def test_gate_values_of_the_paper() -> None:
    groups = [[4, 3, 5, 2], [1, 3, 4, 5], [2, 3, 3, 4], [3, 3, 4, 4], [1, 1, 5, 5], [2, 2, 2, 2]]
    wants = [0.250, 0.4375, 0.099, 0.050, 0.80, 0.0]
    for group, want in zip(groups, wants, strict=True):
        assert wf.MixingGate()(torch.tensor([group], dtype=torch.float32)).item() == pytest.approx(
            want, abs=1e-3
        )


def test_gate_smooths_and_its_state_survives() -> None:
    gate = wf.MixingGate()
    assert gate.value is None
    assert gate.state_dict() == {"value": torch.tensor(-1.0)}
    first = gate(torch.tensor([[1.0, 1.0, 5.0, 5.0]]))
    second = gate(torch.tensor([[2.0, 2.0, 2.0, 2.0], [1.0, 1.0, 5.0, 5.0]]))
    assert second.item() == pytest.approx(0.9 * first.item() + 0.1 * 0.4, abs=1e-4)
    assert second.shape == () and second.dtype == torch.float32
    resumed = wf.MixingGate()
    resumed.load_state_dict(gate.state_dict())
    rewards = torch.tensor([[1.0, 4.0]])
    assert torch.equal(resumed(rewards), gate(rewards))
    initial = wf.MixingGate(initial=0.55)
    assert initial.value.item() == pytest.approx(0.55)
    initial.load_state_dict(wf.MixingGate().state_dict())
    assert initial.value is None


def test_gate_leaves_missing_rewards_out() -> None:
    with_gaps = torch.tensor([[1.0, NAN, 5.0, NAN], [NAN, NAN, NAN, NAN]])
    assert torch.equal(wf.MixingGate()(with_gaps), wf.MixingGate()(torch.tensor([[1.0, 5.0]])))
    gate = wf.MixingGate(initial=0.3)
    assert gate(torch.full((2, 4), NAN)).item() == pytest.approx(0.3)
    assert gate(torch.zeros(0, 4)).item() == pytest.approx(0.3)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"lambda_max": 1.5}, "lambda_max: got 1.5"),
        ({"ema": -0.1}, "ema: got -0.1"),
        ({"variance_scale": 0.0}, "variance_scale: got 0.0"),
        ({"initial": 0.9}, "initial: got 0.9"),
    ],
)
def test_a_bad_gate_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wf.MixingGate(**settings)
