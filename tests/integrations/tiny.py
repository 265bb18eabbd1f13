"""Small random models and a tokenizer of whole words, made here: nothing is downloaded."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

WORDS = ["<pad>", "<eos>", *(f"w{i}" for i in range(98))]
VOCAB, PAD, EOS = len(WORDS), 0, 1
SIZES = dict(
    vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
    pad_token_id=PAD, eos_token_id=EOS, bos_token_id=None,
)  # fmt: skip
EXPERTS = dict(
    num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, decoder_sparse_step=1,
    output_router_logits=True,
)  # fmt: skip
FAMILIES = {
    "plain": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "tied": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=True)),
    "bias": lambda: PhiForCausalLM(PhiConfig(**SIZES, resid_pdrop=0.0, embd_pdrop=0.0)),
    "scale": lambda: CohereForCausalLM(CohereConfig(**SIZES, logit_scale=0.25)),
    "divisor": lambda: GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=4.0)),
    "experts": lambda: Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, **EXPERTS)),
    "soft cap": lambda: Gemma2ForCausalLM(
        Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=2.0)
    ),
}
"""By what their head has."""


def tokenizer():
    ids = {word: number for number, word in enumerate(WORDS)}
    inner = Tokenizer(models.WordLevel(ids, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )


def tiny_model(family="plain", dtype=torch.float32):
    """Weights so large that probabilities are far from uniform, and a bias that is not 0."""
    torch.manual_seed(0)
    model = FAMILIES[family]().to(dtype)
    head = model.get_output_embeddings()
    with torch.no_grad():
        head.weight.mul_(8)
        if head.bias is not None:
            head.bias.normal_(0, 1)
    return model


def with_adapter(model, *targets, rank=4):
    """A peft model whose adapters change what it says."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    config = LoraConfig(r=rank, target_modules=list(targets), init_lora_weights=False)
    return get_peft_model(model, config)


def gradients(model):
    """{name: gradient} in float64."""
    return {
        name: weight.grad.double()
        for name, weight in model.named_parameters()
        if weight.grad is not None
    }


def distance(found, wanted):
    """How far ``found`` {name: tensor} is from ``wanted``, relative to its norm."""
    assert found.keys() == wanted.keys(), found.keys() ^ wanted.keys()
    apart = sum((found[name] - wanted[name]).square().sum() for name in wanted)
    return float((apart / sum(value.square().sum() for value in wanted.values())) ** 0.5)
