"""TRL's trainers over the fused head do what TRL's own do."""

import pytest

pytest.importorskip("trl")

from tests.integrations.trl_runs import (
    FULL_LOGITS,
    OURS,
    THEIRS,
    OfATool,
    apart,
    run,
)

TOLERANCE = {
    "loss": 2e-5, "first gradient": 2e-6, "gradient": 5e-5, "weights": 3e-4, "logged": 1e-3,
}  # fmt: skip
"""Adam divides rounding noise by itself, so later steps differ more than the first."""


def assert_same(found, wanted, **other):
    differences = apart(found, wanted)
    print(differences)
    limits = TOLERANCE | other
    assert all(differences[name] <= limits[name] for name in limits), differences


CASES = {
    "GRPO, bias and temperature": (
        "GRPO", dict(family="bias", temperature=0.7, loss_type="dapo", entropy_coef=0.05),
    ),
    "GRPO, scale, two iterations, a tool": (
        "GRPO",
        dict(family="scale", loss_type="grpo", num_iterations=2, max_steps=4, script=OfATool),
    ),
    "RLOO, reference": ("RLOO", dict(temperature=0.8, beta=0.1)),
    "SFT, experts": ("SFT", dict(family="experts")),
    "DPO, soft cap, weighted": ("DPO", dict(family="soft cap", use_weighting=True)),
    "KTO, adapter on attention": ("KTO", dict(lora=["q_proj"])),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_losses_gradients_weights_and_metrics_are_those_of_trl(name):
    kind, options = CASES[name]
    assert_same(run(kind, OURS[kind], **options), run(kind, THEIRS[kind], **options))


def test_an_adapter_on_the_head_is_trained_as_by_full_logits():
    options = dict(lora=["q_proj", "lm_head"], beta=0.1, loss_type="grpo")
    found = run("GRPO", OURS["GRPO"], **options)
    assert_same(found, run("GRPO", FULL_LOGITS["ours"], **options))
    head = found.trainer.model.get_output_embeddings()
    assert head.lora_B["default"].weight.abs().max() > 0
