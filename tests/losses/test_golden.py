"""Values and gradients of every golden case, which the released code computed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import wavalign_fast as wf

CASES = sorted((Path(__file__).parents[1] / "data" / "hybrid").glob("*.safetensors"))
PRECISIONS = {"reference": (torch.float64, 1e-6), "cpu": (torch.float32, 1e-5)}


def load(path: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, torch.Tensor]]:
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return json.loads(metadata["config"]), json.loads(metadata["expected"]), tensors


def objective(config: dict[str, Any], backend: str) -> wf.HybridObjective:
    layout = wf.ModalityLayout(
        vocab_size=config["vocab"],
        speech=((config["audio_start"], config["vocab"]),),
        boundary=(config["begin_of_audio"], config["end_of_audio"]),
        boundary_as="speech" if config["boundaries_are_speech"] else "text",
        eos=(config["eos"],),
    )
    gate: wf.MixingGate | float = config["fixed_rl_weight"]
    if config["adaptive"]:
        gate = wf.MixingGate(
            config["lambda_max"],
            config["ema"],
            config["gate_slope"],
            config["reward_threshold"],
            initial=config["lambda_state_in"],
        )
    has_reference = config["use_reference"]
    return wf.HybridObjective(
        layout,
        policy_scope=config["rl_tokens"],
        anchor_scope=config["sft_tokens"],
        text_weight=config["rl_text_weight"],
        speech_weight=config["rl_speech_weight"],
        anchor_text_weight=config["sft_text_weight"],
        anchor_speech_weight=config["sft_speech_weight"],
        text_kl=config["text_beta"] if has_reference else 0.0,
        speech_kl=config["speech_beta"] if has_reference else 0.0,
        gate=gate,
        options=wf.LossOptions(backend=backend),
    )


@pytest.mark.parametrize("backend", PRECISIONS)
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_case(path: Path, backend: str) -> None:
    config, expected, case = load(path)
    dtype, tolerance = PRECISIONS[backend]
    hidden = case["hidden"].to(dtype, copy=True).requires_grad_()
    weight = case["weight"].to(dtype, copy=True).requires_grad_()
    batch = wf.HybridBatch.from_padded(
        case["input_ids"],
        case["completion_mask"],
        case["labels"],
        case["rewards"],
        torch.tensor(config["prompt_lengths"]),
        case.get("reference_logps"),
    )
    out = objective(config, backend)(hidden, weight, batch)
    out.loss.backward()

    def close(value: torch.Tensor, want: Any) -> None:
        torch.testing.assert_close(
            value.double(), torch.as_tensor(want).double(), rtol=tolerance, atol=1e-12
        )

    close(out.policy_loss, expected["rl_loss"])
    close(out.anchor_loss, expected["sft_loss"])
    close(out.loss, expected["total"])
    close(out.rl_weight, expected["rl_weight"])
    for name, want in (expected["lambda_stats"] or {}).items():
        close(out.metrics[f"adaptive_{name}"], want)
    for name, per_prompt in expected["metrics"].items():
        # With text scope speech is never multiplied with the head and has no statistics.
        if name in out.metrics:
            close(out.metrics[name], sum(per_prompt) / len(per_prompt))
    assert {"reward", "reward_std", "completion_length"} <= set(out.metrics)
    for leaf, name in ((hidden, "grad_hidden"), (weight, "grad_weight")):
        truth = case[name]
        worst = (leaf.grad.double() - truth).abs().max()
        assert worst <= tolerance * truth.abs().max(), name


def test_every_case_is_here_and_all_kl_metrics_are_seen_somewhere() -> None:
    assert len(CASES) == 8
    config, expected, case = load(next(p for p in CASES if p.stem == "rl_all_tokens"))
    batch = wf.HybridBatch.from_padded(
        case["input_ids"], case["completion_mask"], case["labels"], case["rewards"],
        torch.tensor(config["prompt_lengths"]), case["reference_logps"],
    )  # fmt: skip
    metrics = objective(config, "reference")(case["hidden"], case["weight"], batch).metrics
    assert set(expected["metrics"]) - {"rewards/r"} <= set(metrics)
