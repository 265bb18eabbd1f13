"""Model flops of a step against torch's own count of the operations of tiny models."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    MistralConfig,
    Qwen2Config,
    Qwen3MoeConfig,
)

from wavalign_fast.gpu_specifications import GPUS, PEAKS, peak_flops
from wavalign_fast.models.transformers_names import cache_argument
from wavalign_fast.train.flops import StepTokens, mfu, model_size, step_flops

SIZES = dict(
    vocab_size=101,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
)
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, head_dim=8)
LENGTHS, LIVE = (7, 11, 4), 9


def tiny(kind=Qwen2Config, **options):
    # FlopCounterMode counts no attention of the CPU but the eager one.
    config = kind(**SIZES | options, attn_implementation="eager")
    return AutoModelForCausalLM.from_config(config).train()


def counted(run) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def of_rotations(model, lengths) -> int:
    """Products of the rotary frequencies with the positions, which old transformers computes so."""
    hidden = torch.zeros(1, 1, SIZES["hidden_size"])
    places = [torch.arange(n)[None] for n in lengths]
    return counted(lambda: [model.base_model.rotary_emb(hidden, place) for place in places])


def forward(model, lengths, live):
    """Runs rows of these lengths, each alone; returns logits of the first ``live`` positions."""
    hidden = torch.cat([
        model.base_model(torch.randint(101, (1, n)), use_cache=False).last_hidden_state[0]
        for n in lengths
    ])  # fmt: skip
    return model.get_output_embeddings()(hidden[:live])


def masked_pairs(lengths) -> int:
    """Pairs that eager attention computes for nothing: a query and a later key, in a layer."""
    return sum(n * (n - 1) // 2 for n in lengths) * SIZES["num_hidden_layers"]


@pytest.mark.parametrize("tied", [False, True])
def test_forward_and_backward_are_those_that_torch_counts(tied):
    model = tiny(tie_word_embeddings=tied)
    size = model_size(model)
    found = step_flops(size, StepTokens(trained=LENGTHS, live=LIVE)).forward_backward
    wanted = counted(lambda: forward(model, LENGTHS, LIVE).sum().backward())
    wanted -= of_rotations(model, LENGTHS)
    assert found + 3 * size.pair_flops * masked_pairs(LENGTHS) == wanted


def test_scored_rows_cost_a_forward_pass():
    model = tiny()
    size = model_size(model)
    found = step_flops(size, StepTokens(scored=LENGTHS, scored_live=LIVE))
    with torch.no_grad():
        wanted = counted(lambda: forward(model, LENGTHS, LIVE)) - of_rotations(model, LENGTHS)
    assert found.reference + size.pair_flops * masked_pairs(LENGTHS) == wanted
    assert found.model == found.reference


def test_activation_checkpointing_repeats_the_body_and_is_told_apart():
    tokens = StepTokens(trained=LENGTHS, live=LIVE)
    size = model_size(tiny())
    plain, repeated = step_flops(size, tokens), step_flops(size, tokens, recompute=True)
    body = step_flops(size, StepTokens(scored=LENGTHS)).reference
    assert (plain.recomputation, repeated.recomputation) == (0, body)
    assert plain.model == repeated.model


def decode(model, prompt: int, new: int) -> None:
    """One prompt and one completion, an id at a time over the cache."""
    cache = DynamicCache(config=model.config)
    argument = cache_argument(model, cache)
    model(torch.randint(101, (1, prompt)), use_cache=True, logits_to_keep=1, **argument)
    for _ in range(new - 1):
        model(torch.randint(101, (1, 1)), use_cache=True, **argument)


@pytest.mark.parametrize(("prompt", "new"), [(6, 5), (6, 1)])
def test_a_rollout_costs_a_prefill_and_one_token_at_a_time(prompt, new):
    model = tiny().eval()
    size = model_size(model)
    tokens = StepTokens(prompts=(prompt,), completions=((prompt, new),))
    with torch.no_grad():
        wanted = counted(lambda: decode(model, prompt, new))
    wanted -= of_rotations(model, (prompt, *[1] * (new - 1)))
    found = step_flops(size, tokens).rollout
    assert found + size.pair_flops * masked_pairs((prompt,)) == wanted


def test_a_group_shares_the_prefill_of_its_prompt():
    size = model_size(tiny())
    one = step_flops(size, StepTokens(prompts=(6,), completions=((6, 5),))).rollout
    three = step_flops(size, StepTokens(prompts=(6,), completions=((6, 5),) * 3)).rollout
    prefill = step_flops(size, StepTokens(prompts=(6,))).rollout
    assert three == 3 * one - 2 * prefill > one


def test_a_frozen_matrix_has_no_weight_gradient():
    model = tiny()
    model.requires_grad_(False)
    model.get_output_embeddings().weight.requires_grad_(True)
    size = model_size(model)
    assert size.body.trained == 0
    assert size.body.backward == size.body.forward
    assert size.head.backward == 2 * size.head.forward


def test_a_lora_counts_beside_the_frozen_matrices():
    peft = pytest.importorskip("peft")
    plain = model_size(tiny())
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "lm_head"])
    size = model_size(peft.get_peft_model(tiny(), config))
    width = SIZES["hidden_size"]
    assert size.body.frozen == plain.body.trained
    assert size.body.trained == SIZES["num_hidden_layers"] * 2 * (width + width)
    assert (size.head.frozen, size.head.trained) == (101 * width, 2 * (101 + width))


def test_only_the_chosen_experts_count():
    model = tiny(Qwen3MoeConfig, **EXPERTS, decoder_sparse_step=1, mlp_only_layers=[])
    stacked = sum(w.numel() for w in model.parameters() if w.ndim == 3)
    flat = [w for n, w in model.named_parameters() if w.ndim == 2 and "embed" not in n]
    rest = sum(w.numel() for w in flat) - model.lm_head.weight.numel()
    assert stacked > 0
    assert model_size(model).body.trained == rest + stacked / 2


def test_a_window_limits_the_keys_of_a_query():
    size = model_size(tiny(MistralConfig, sliding_window=3))
    assert size.windows == (3, 3, 3)
    whole = size._replace(windows=(None,) * 3)
    tokens = StepTokens(scored=(5,))
    fewer = step_flops(whole, tokens).reference - step_flops(size, tokens).reference
    assert fewer == 3 * size.pair_flops * (1 + 2)  # 15 pairs against 1 + 2 + 3 + 3 + 3
    decoded = StepTokens(completions=((4, 3),))
    fewer = step_flops(whole, decoded).rollout - step_flops(size, decoded).rollout
    assert fewer == 3 * size.pair_flops * (2 + 3)


def test_sizes_are_known_without_weights():
    with torch.device("meta"):
        model = tiny()
    assert next(model.parameters()).is_meta
    assert model_size(model) == model_size(tiny())


def test_mfu_is_the_share_of_the_peak_of_all_devices():
    assert mfu(6e12, 2.0, 1e12, devices=4) == 0.75


@pytest.mark.parametrize(
    ("name", "bf16", "fp32"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4e12, 66.9e12),
        ("NVIDIA H100 PCIe", 756e12, 51.2e12),
        ("NVIDIA H100 NVL", 835.5e12, 60e12),
        ("NVIDIA GH200 480GB", 989.4e12, 66.9e12),
        ("NVIDIA H200", 989.4e12, 66.9e12),
        ("NVIDIA H200 NVL", 835.5e12, 60e12),
        ("NVIDIA A100-SXM4-80GB", 312e12, 19.5e12),
        ("NVIDIA A100 80GB PCIe", 312e12, 19.5e12),
        ("NVIDIA A10", 125e12, 31.2e12),
        ("NVIDIA L40S", 362e12, 91.6e12),
        ("NVIDIA L4", 121e12, 30.3e12),
        ("NVIDIA B200", 2250e12, 80e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12, 82.6e12),
    ],
)
def test_peaks_by_the_name_that_torch_gives(name, bf16, fp32):
    assert peak_flops(name, torch.bfloat16) == peak_flops(name, torch.float16) == bf16
    assert peak_flops(name, torch.float32) == fp32
    assert peak_flops(name, torch.float64) is None


@pytest.mark.parametrize(
    "name",
    [
        "cpu",
        "Intel(R) Xeon(R)",
        "NVIDIA A10G",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
    ],
)
def test_an_unknown_device_has_no_peak(name):
    assert peak_flops(name, torch.bfloat16) is None


def test_every_peak_is_reached_by_its_own_name_and_has_a_source():
    for peak in PEAKS:
        assert peak_flops(f"NVIDIA {peak.pattern}", torch.bfloat16) == peak.matrix_flops
        assert len(peak.source) > 10
    assert {gpu.name for gpu in GPUS} <= {peak.pattern for peak in PEAKS}
