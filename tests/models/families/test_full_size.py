"""Configurations of the published size: parameter counts, shapes and ids, without memory."""

from types import SimpleNamespace

import pytest
import torch

from wavalign_fast.errors import UserError
from wavalign_fast.models.families import glm4_voice, vita_audio
from wavalign_fast.models.families.checkpoint import weight_table
from wavalign_fast.models.families.tiny_parts import GLM_SPECIAL
from wavalign_fast.models.families.tiny_tokenizers import QWEN2_ADDED
from wavalign_fast.models.meta_weights import weights_on_meta

VITA = {
    "architectures": ["Qwen2MTPForCausalLM"],
    "model_type": "qwen2_mtp",
    "num_hidden_layers": 38,
    "num_nextn_predict_layers": 10,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "max_position_embeddings": 32768,
    "sliding_window": 131072,
    "use_sliding_window": False,
    "tie_word_embeddings": False,
    "vocab_size": 168072,
}
PLUS = VITA | {
    "architectures": ["Qwen2MTPSenseVoiceForCausalLM"],
    "model_type": "qwen2_mtp_sensevoice",
    "num_hidden_layers": 28,
    "num_nextn_predict_layers": 0,
}
GLM = {
    "architectures": ["ChatGLMForConditionalGeneration"],
    "model_type": "chatglm",
    "num_layers": 40,
    "hidden_size": 4096,
    "ffn_hidden_size": 13696,
    "num_attention_heads": 32,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "kv_channels": 128,
    "layernorm_epsilon": 1.5625e-07,
    "add_qkv_bias": True,
    "add_bias_linear": False,
    "padded_vocab_size": 168960,
    "seq_length": 8192,
    "tie_word_embeddings": False,
}
HIDDEN, CODES = 3584, 16384
LAYER = 2 * (HIDDEN**2 + 512 * HIDDEN) + HIDDEN + 2 * 512 + 3 * 18944 * HIDDEN + 2 * HIDDEN


def built(family, config):
    with weights_on_meta():
        model = family.build(config, torch.bfloat16)
    return model, weight_table(model, family, config)


@pytest.mark.parametrize("config", [VITA, PLUS], ids=["balance", "plus"])
def test_the_body_of_vita_audio_has_7_73_billion_weights(config):
    model, table = built(vita_audio, config)
    count = sum(weight.numel() for weight in model.parameters())
    assert count == 28 * LAYER + HIDDEN + 2 * 168072 * HIDDEN == 7_730_361_856
    assert all(weight.dtype == torch.bfloat16 for weight in model.parameters())
    assert model.model.rotary_emb.inv_freq[1] == pytest.approx(1e6 ** (-2 / 128))
    mtp = [shape for name, shape in table.aside.items() if "audio" not in name]
    beside = sum(torch.Size(shape).numel() for shape in mtp)
    assert beside == config["num_nextn_predict_layers"] * (LAYER + 2 * HIDDEN**2 + 2 * HIDDEN)
    assert table.is_aside("model.audio_model.model.encoder.after_norm.bias") == (config is PLUS)


def test_glm4_voice_has_the_published_shapes():
    model, table = built(glm4_voice, GLM)
    qkv = 4096 + 2 * 256
    layer = (qkv + 4096) * 4096 + qkv + 3 * 13696 * 4096 + 2 * 4096
    count = sum(weight.numel() for weight in model.parameters())
    assert count == 40 * layer + 4096 + 2 * 168960 * 4096
    stored = "transformer.encoder.layers.39.self_attention.query_key_value.weight"
    names = [f"model.layers.39.self_attn.{kind}_proj.weight" for kind in "qkv"]
    assert table.parts[stored] == names
    assert [table.pieces[name].first for name in names] == [0, 4096, 4352]
    assert len(table.parts) == 3 + 40 * 7
    assert model.model.rotary_emb.inv_freq.shape == (32,)


def tokenizer(names, *, gaps=None):
    """A stand-in for a tokenizer: names by their ids, and which are special."""
    vocab = {name: index for index, (name, _) in enumerate(names)}
    vocab |= gaps or {}
    special = {vocab[name]: SimpleNamespace(special=special) for name, special in names if special}
    return SimpleNamespace(get_vocab=lambda: vocab, added_tokens_decoder=special)


def qwen2(plus):
    added = [(name, True) for name in vita_audio.ADDED[:-1] if plus or name != vita_audio.CONTEXT]
    codes = [(f"<|audio_{number}|>", False) for number in range(CODES)]
    ranks = [(f"rank {number}", False) for number in range(151643)]
    return [*ranks, *QWEN2_ADDED, *added, *codes]


@pytest.mark.parametrize(("config", "plus"), [(VITA, False), (PLUS, True)])
def test_ids_of_vita_audio_are_the_published_ones(config, plus):
    names = qwen2(plus)
    layout = vita_audio.layout(config, tokenizer(names))
    first = 151686 if plus else 151685
    assert (layout.first_code, layout.codebook_size) == (first, CODES)
    assert layout.stream.boundary == (151674, 151675)
    assert layout.stop == (151645, 151643)
    assert layout.named["im_start"] == 151644
    assert layout.named.get("context_of_audio") == (151676 if plus else None)
    pads = [index for index in layout.special if index >= first]
    assert len(pads) == (2 if plus else 3) and max(pads) == 168071
    with pytest.raises(
        UserError, match=r"longer than the embedding: <\|audio_16383\|> has id 1680"
    ):
        vita_audio.layout(config | {"vocab_size": 152064}, tokenizer(names))


def test_plus_needs_its_context_token():
    with pytest.raises(UserError, match=r"no token <\|context_of_audio\|>"):
        vita_audio.layout(PLUS, tokenizer(qwen2(plus=False)))


def test_ids_of_glm4_voice_may_leave_a_gap_before_the_codes():
    ranks = [(f"rank {number}", False) for number in range(151329)]
    names = [*ranks, *((name, True) for name in GLM_SPECIAL)]
    codes = {f"<|audio_{number}|>": 152353 + number for number in range(CODES)}
    layout = glm4_voice.layout(GLM, tokenizer(names, gaps=codes))
    assert (layout.first_code, layout.codebook_size) == (152353, CODES)
    assert layout.stream.boundary == (151343, 151344)
    assert layout.stop == (151329, 151336, 151338)
    assert len([index for index in layout.special if index > 168736]) == 223
    assert {151333, 151345, 152352} <= layout.special
