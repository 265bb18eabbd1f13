"""The C++ decode against transformers' own code, and the models that it leaves to that."""

import copy

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from wavalign_fast.rollout import lean_model as module
from wavalign_fast.rollout import sample_completions, sample_with_logps
from wavalign_fast.rollout.lean_decode import LeanDecode
from wavalign_fast.rollout.lean_model import lean_model

PROMPTS = [[5, 6, 7, 8, 9], [10], [11, 12, 13], [4] * 9]
ENDS = [1, 2, 3, 14, 15]
SIZES = {
    "vocab_size": 41,
    "hidden_size": 24,
    "intermediate_size": 36,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "initializer_range": 0.3,
    "max_position_embeddings": 64,
}
QWEN2 = SIZES | {"head_dim": 4}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 4.0, "low_freq_factor": 1.0}
LLAMA3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 16}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
YARN |= {"original_max_position_embeddings": 16}


def build(kind, config):
    """A random model; its biases and norms are random, too."""
    torch.manual_seed(0)
    model = kind(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.add_(torch.randn_like(weight) * 0.3)
    return model


MODELS = {
    "qwen2": lambda: build(Qwen2ForCausalLM, Qwen2Config(**QWEN2)),
    "qwen2 tied": lambda: build(Qwen2ForCausalLM, Qwen2Config(**QWEN2, tie_word_embeddings=True)),
    "llama": lambda: build(LlamaForCausalLM, LlamaConfig(**SIZES)),
    "llama 3 with biases": lambda: build(
        LlamaForCausalLM,
        LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True, rope_parameters=LLAMA3),
    ),
    "qwen3": lambda: build(Qwen3ForCausalLM, Qwen3Config(**SIZES)),
    "qwen3 yarn": lambda: build(Qwen3ForCausalLM, Qwen3Config(**SIZES, rope_parameters=YARN)),
}


def both(model, monkeypatch, **options):
    """Completions and log-probs by the C++ decode, and by transformers' own code."""
    decoded = []
    of = LeanDecode.of

    def noted(*args):
        decoded.append(of(*args))
        return decoded[-1]

    options = {"max_new_tokens": 20, "eos_id": ENDS, "pad_id": 0, "group_size": 3} | options
    with monkeypatch.context() as patch:
        patch.setattr(LeanDecode, "of", noted)
        lean = sample_with_logps(model, PROMPTS, **options)
    assert decoded[0] is not None, "transformers' own code ran"
    with monkeypatch.context() as patch:
        patch.setattr(LeanDecode, "of", lambda *_: None)
        return lean, sample_with_logps(model, PROMPTS, **options)


@pytest.mark.parametrize("name", MODELS)
def test_completions_are_those_of_transformers_own_code(name, monkeypatch):
    model = MODELS[name]()
    draws = torch.rand(12, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for options in ({"temperature": 0.0}, {"draws": draws}, {"draws": draws, "temperature": 0.8}):
        lean, plain = both(model, monkeypatch, **options)
        assert lean.ids == plain.ids
        if options.get("temperature") != 0.0:
            assert len({len(ids) for ids in lean.ids}) > 2, "rows end together"
        for found, wanted in zip(lean.logps, plain.logps, strict=True):
            torch.testing.assert_close(found, wanted, atol=5e-5, rtol=1e-4)


def test_adapters_are_merged(monkeypatch):
    peft = pytest.importorskip("peft")
    targets = ["q_proj", "v_proj", "gate_proj", "down_proj", "lm_head"]
    config = peft.LoraConfig(r=3, target_modules=targets, init_lora_weights=False)
    model = peft.get_peft_model(MODELS["qwen2"](), config)
    draws = torch.rand(12, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    lean, plain = both(model, monkeypatch, draws=draws)
    assert lean.ids == plain.ids


def test_bfloat16_log_probs_are_close_to_float32(monkeypatch):
    """Rounding changes completions; the log-probs of the same ids are as close as transformers'."""
    model = MODELS["qwen3"]()
    half = copy.deepcopy(model).bfloat16()
    half.model.rotary_emb = copy.deepcopy(model.model.rotary_emb)
    draws = torch.rand(12, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    errors = []
    for sampled in both(half, monkeypatch, draws=draws):
        error = []
        for row, (ids, logps) in enumerate(zip(sampled.ids, sampled.logps, strict=True)):
            prompt = PROMPTS[row // 3]
            with torch.no_grad():
                logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
            wanted = torch.log_softmax(logits, -1)[torch.arange(len(ids)), ids]
            error.append((logps - wanted).abs().mean())
        errors.append(float(torch.stack(error).mean()))
    assert errors[0] < 1.3 * errors[1]


class OwnModel(Qwen2ForCausalLM):
    """Somebody's model, whose forward may be anything."""


def hooked(model):
    model.model.layers[1].mlp.register_forward_hook(lambda *_: None)
    return model


def renamed(model):
    model.model.layers[0].self_attn.sink = torch.nn.Parameter(torch.zeros(1))
    return model


def replaced(model):
    model.lm_head.forward = lambda rows: rows
    return model


OTHERS = {
    "sliding window": lambda: build(
        Qwen2ForCausalLM,
        Qwen2Config(**QWEN2, use_sliding_window=True, sliding_window=3, max_window_layers=1),
    ),
    "another family": lambda: build(
        MistralForCausalLM, MistralConfig(**SIZES, sliding_window=None)
    ),
    "angles that depend on the length": lambda: build(
        LlamaForCausalLM, LlamaConfig(**SIZES, rope_parameters=DYNAMIC)
    ),
    "another activation": lambda: build(Qwen2ForCausalLM, Qwen2Config(**QWEN2, hidden_act="gelu")),
    "a class of its own": lambda: build(OwnModel, Qwen2Config(**QWEN2)),
    "a hook": lambda: hooked(MODELS["qwen2"]()),
    "a weight more": lambda: renamed(MODELS["qwen2"]()),
    "a replaced forward": lambda: replaced(MODELS["qwen2"]()),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_models_are_left_to_transformers_own_code(name):
    assert lean_model(MODELS["qwen2"]()) is not None
    assert lean_model(OTHERS[name]()) is None


def test_float64_is_left_to_transformers_own_code(monkeypatch):
    model = MODELS["qwen2"]().double()
    options = {"max_new_tokens": 6, "eos_id": None, "pad_id": 0, "temperature": 0.0}
    wanted = sample_completions(model, PROMPTS, **options)
    monkeypatch.setattr(LeanDecode, "of", lambda *_: None)
    assert sample_completions(model, PROMPTS, **options) == wanted


def test_torchs_gemms_give_the_same_completions(monkeypatch):
    """What a processor without wide vectors runs; q, k, v and gate, up are one matrix there."""
    options = {"max_new_tokens": 6, "eos_id": None, "pad_id": 0, "temperature": 0.0}
    for name in ("qwen2", "llama 3 with biases"):
        model = MODELS[name]()
        wanted = sample_completions(model, PROMPTS, **options)
        with monkeypatch.context() as patch:
            patch.setattr(module, "linear_is_fast", lambda _: False)
            assert len(lean_model(model).layers[0].qkv.weights) == 1
            assert sample_completions(model, PROMPTS, **options) == wanted
