"""One model calls liger-kernel, others do not. Its kernels themselves are in tests/gpu."""

import importlib.util
import sys
from types import ModuleType

import pytest
import torch
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP

from wavalign_fast.errors import UserError
from wavalign_fast.models import frozen_copy, liger, use_liger

from .bodies import CONFIGS, body_of, hidden_and_gradients, largest_error
from .liger_stand_in import FUNCTIONS, stand_in

LAYERS = 2


@pytest.mark.parametrize("family", CONFIGS)
def test_every_norm_rotation_and_mlp_is_the_kernels(monkeypatch, family):
    calls = stand_in(monkeypatch)
    plain, swapped = body_of(family), body_of(family)
    names = list(swapped.state_dict())
    use_liger(swapped)
    wanted = hidden_and_gradients(plain, 7, 4)
    assert not calls
    found = hidden_and_gradients(swapped, 7, 4)
    per_layer = 4 if family == "qwen3" else 2  # Qwen3 has norms of queries and keys
    assert calls == {"norm": per_layer * LAYERS + 1, "rope": LAYERS, "swiglu": LAYERS}
    assert largest_error(found, wanted) < 1e-6
    assert list(swapped.state_dict()) == names


def test_copies_keep_the_kernels_and_models_made_later_have_none(monkeypatch):
    calls = stand_in(monkeypatch)
    model = body_of("qwen2")
    use_liger(model)
    with torch.no_grad():
        body_of("qwen2")(torch.tensor([[1, 2]]))
        assert not calls
        frozen_copy(model)(torch.tensor([[1, 2]]))
    assert calls["rope"] == LAYERS


def test_a_decode_with_a_cache_is_that_of_plain_torch(monkeypatch):
    stand_in(monkeypatch)
    plain, swapped = body_of("qwen3").eval(), body_of("qwen3").eval()
    use_liger(swapped)
    ids = torch.tensor([[1, 2, 3]])
    options = dict(max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert torch.equal(swapped.generate(ids, **options), plain.generate(ids, **options))


def test_a_saved_model_is_one_of_transformers(monkeypatch, tmp_path):
    stand_in(monkeypatch)
    model = body_of("llama")
    use_liger(model)
    model.save_pretrained(tmp_path / "swapped")
    body_of("llama").save_pretrained(tmp_path / "plain")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "swapped" / name).read_bytes() == (
            tmp_path / "plain" / name
        ).read_bytes()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: other_family(), r"model of type 'gpt2', wanted one of llama, mistral, qwen2, qw"),
        (lambda: body_of("llama", hidden_act="gelu"), "hidden_act 'gelu', wanted 'silu'"),
        (lambda: without_an_mlp(), r"Qwen2ForCausalLM has no Qwen2MLP, wanted a model with Qw"),
    ],
)
def test_a_model_that_the_kernels_do_not_fit_is_refused(monkeypatch, model, message):
    calls = stand_in(monkeypatch)
    refused = model()
    with pytest.raises(UserError, match=message):
        use_liger(refused)
    with torch.no_grad():
        refused(torch.tensor([[1, 2]]))
    assert not calls


def other_family():
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=2, n_positions=8))


def without_an_mlp():
    model = body_of("qwen2")
    for module in model.modules():
        if type(module) is Qwen2MLP:
            module.__class__ = type("Other", (Qwen2MLP,), {})
    return model


def test_an_attention_that_rotates_otherwise_is_refused(monkeypatch):
    stand_in(monkeypatch)
    monkeypatch.setattr(liger, "ROTATE", "another_name")
    with pytest.raises(UserError, match="Qwen2Attention does not call another_name"):
        use_liger(body_of("qwen2"))


def test_what_is_missing_is_named(monkeypatch):
    model = body_of("qwen2")
    found = importlib.util.find_spec
    monkeypatch.setattr(
        liger, "find_spec", lambda name: None if name == "liger_kernel" else found(name)
    )
    with pytest.raises(UserError, match=r"needs the package liger-kernel \(pip install liger"):
        use_liger(model)
    stand_in(monkeypatch)
    monkeypatch.setattr(liger, "find_spec", found)
    monkeypatch.setattr(liger, "backend_status", lambda: {"triton": "there is no GPU"})
    with pytest.raises(UserError, match=r"cannot be used here: its kernels .* there is no GPU"):
        use_liger(model)
    monkeypatch.setattr(liger, "backend_status", lambda: {"triton": None})
    monkeypatch.setitem(sys.modules, FUNCTIONS, ModuleType(FUNCTIONS))
    with pytest.raises(UserError, match="cannot be used here: cannot import name 'liger_rms_norm'"):
        use_liger(model)
