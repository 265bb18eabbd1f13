"""The options of TRL's trainers, one by one: `make test-integrations`."""

import pytest
import torch
from torch.nn.functional import cross_entropy

pytest.importorskip("trl")

from tests.integrations.test_trl import assert_same
from tests.integrations.trl_runs import FULL_LOGITS, OURS, THEIRS, OfATool, run

pytestmark = pytest.mark.wide

LOSSES = ("grpo", "dapo", "dr_grpo", "bnpo", "cispo", "sapo", "luspo", "vespo")
TWICE = dict(num_iterations=2, max_steps=4)
HALF = {"loss": 0.1, "first gradient": 0.1, "gradient": 0.2, "weights": 0.2, "logged": 1.0}
"""In bfloat16 the body's rounding decides, not the head's."""
CASES = {
    **{f"loss {name}": dict(loss_type=name) for name in LOSSES},
    "sequence ratio": TWICE | dict(loss_type="grpo", importance_sampling_level="sequence"),
    "delta": TWICE | dict(loss_type="grpo", delta=1.5, epsilon_high=0.28),
    "steps_per_generation": dict(steps_per_generation=4, max_steps=4),
    "temperature": dict(temperature=0.7),
    "top_entropy_quantile": dict(top_entropy_quantile=0.3),
    "entropy_coef": dict(entropy_coef=0.05),
    "adaptive entropy": dict(use_adaptive_entropy=True, entropy_coef=0.01),
    "mask_truncated_completions": dict(mask_truncated_completions=True),
    "a tool's tokens": dict(script=OfATool),
    "reference": dict(beta=0.1),
    "off-policy mask": TWICE | dict(off_policy_mask_threshold=0.01),
    "pad_to_multiple_of": dict(pad_to_multiple_of=16),
    "scale_rewards": dict(scale_rewards="none", per_device_train_batch_size=8),
    "checkpointing": dict(gradient_checkpointing=True),
    "adapter and reference": dict(lora=["q_proj", "v_proj"], beta=0.1),
    "cast_lm_head_to_fp32": dict(cast_lm_head_to_fp32=True),
    "tied": dict(family="tied"),
    "bias": dict(family="bias", temperature=0.7),
    "logit_scale": dict(family="scale"),
    "logits_scaling": dict(family="divisor"),
    "soft cap": dict(family="soft cap", temperature=0.7, cast_lm_head_to_fp32=True),
    "experts": dict(family="experts", router_aux_loss_coef=0.02),
}
OTHERS = {
    "SFT, whole rows": ("SFT", dict(completion_only_loss=False)),
    "SFT, dft": ("SFT", dict(loss_type="dft")),
    "SFT, bias": ("SFT", dict(family="bias")),
    "DPO, sigmoid": ("DPO", {}),
    "DPO, ipo and sft": ("DPO", dict(loss_type=["ipo", "sft"])),
    "DPO, ld_alpha": ("DPO", dict(ld_alpha=0.5)),
    "DPO, reference computed before": ("DPO", dict(precompute_ref_log_probs=True)),
    "DPO, adapter": ("DPO", dict(lora=["q_proj"])),
    "DPO, logit_scale": ("DPO", dict(family="scale")),
    "DPO, logits_scaling": ("DPO", dict(family="divisor", use_weighting=True)),
    "KTO": ("KTO", {}),
    "RLOO, two iterations": ("RLOO", TWICE | dict(beta=0.0)),
}
# Before the first update DPO's accuracy compares two zeros, by the sign of their rounding.
NOT_LOGGED = {"logged": float("inf")}


def reported(name, found, wanted, **other):
    print(name)
    assert_same(found, wanted, **other)


@pytest.mark.parametrize("name", CASES)
def test_grpo_is_that_of_trl_and_of_full_logits(name):
    found = run("GRPO", OURS["GRPO"], **CASES[name])
    reported(f"{name}, TRL", found, run("GRPO", THEIRS["GRPO"], **CASES[name]))
    logits = run("GRPO", FULL_LOGITS["TRL"], **CASES[name])
    reported(f"{name}, full logits", found, logits)


@pytest.mark.parametrize("options", [dict(dtype=torch.bfloat16), dict(bf16=True)])
def test_grpo_in_bfloat16(options):
    found, wanted = run("GRPO", OURS["GRPO"], **options), run("GRPO", THEIRS["GRPO"], **options)
    reported(f"{options}", found, wanted, **HALF)


@pytest.mark.parametrize("name", OTHERS)
def test_the_other_trainers_are_those_of_trl(name):
    kind, options = OTHERS[name]
    other = NOT_LOGGED if kind == "DPO" else {}
    reported(name, run(kind, OURS[kind], **options), run(kind, THEIRS[kind], **options), **other)


def of_logits(outputs, labels, num_items_in_batch=None):
    logits = outputs.logits[:, :-1].flatten(0, 1)
    return cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum") / num_items_in_batch


def test_an_adapter_on_the_head_of_sft_is_trained_as_by_full_logits():
    options = dict(lora=["q_proj", "lm_head"])
    wanted = run("SFT", OURS["SFT"], more={"compute_loss_func": of_logits}, **options)
    reported("SFT, adapter on the head", run("SFT", OURS["SFT"], **options), wanted)
