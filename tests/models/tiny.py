"""A tiny Qwen2 with fewer heads of keys than of queries."""

import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

VOCAB = 29


def tiny_model(dtype: torch.dtype = torch.float64, **changes) -> Qwen2ForCausalLM:
    """Weights far from 0, so that an error shows; buffers keep their dtype."""
    torch.manual_seed(0)
    settings = dict(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        tie_word_embeddings=False, initializer_range=0.2,
    )  # fmt: skip
    model = Qwen2ForCausalLM(Qwen2Config(**settings | changes)).train()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def rows_of(*lengths: int, seed: int = 0) -> list[Tensor]:
    make = torch.Generator().manual_seed(seed)
    return [torch.randint(1, VOCAB, (length,), generator=make) for length in lengths]


def gradients(model) -> dict[str, Tensor]:
    return {
        name: weight.grad.clone()
        for name, weight in model.named_parameters()
        if weight.grad is not None
    }
