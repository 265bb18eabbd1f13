"""Tiny models of the families whose norms, rotary embedding and SwiGLU liger-kernel computes."""

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from .tiny import VOCAB, gradients, rows_of

CONFIGS = {
    "llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config,
}  # fmt: skip


def body_of(family: str, dtype: torch.dtype = torch.float32, **changes) -> nn.Module:
    """Two layers, more heads of queries than of keys, and norms whose weights are not 1."""
    settings = dict(
        vocab_size=VOCAB, hidden_size=24, intermediate_size=40, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        tie_word_embeddings=False, initializer_range=0.2, head_dim=8,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[family](**settings | changes)).train()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            nn.init.uniform_(parameter, 0.5, 1.5)
        parameter.data = parameter.data.to(dtype)
    return model


def hidden_and_gradients(model: nn.Module, *lengths: int) -> dict[str, Tensor]:
    """The last hidden states of rows of ids, and the gradients of a weighted sum of them."""
    rows = rows_of(*lengths)
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True).to(model.device)
    model.zero_grad()
    hidden = model.base_model(input_ids=ids).last_hidden_state
    weights = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1))
    (hidden.float() * weights.to(hidden.device)).sum().backward()
    return {"hidden": hidden.detach(), **gradients(model)}


def largest_error(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """The largest difference, as a share of the largest value of its tensor.

    The gradient of a key's bias is a sum that cancels, so its share is of that of a query's bias.
    """
    assert found.keys() == wanted.keys()

    def size(name: str) -> float:
        return float(wanted[name.replace("k_proj.bias", "q_proj.bias")].abs().max())

    return max(float((found[name] - wanted[name]).abs().max()) / size(name) for name in wanted)
