"""The sizes of the paper's model: VITA-Audio-Plus, a Qwen2.5-7B with 168 072 ids."""

from typing import Any

SIZES = {
    "vocab_size": 168072,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
    "max_position_embeddings": 32768,
}


def paper_config() -> Any:
    """Its transformers config."""
    from transformers import Qwen2Config

    return Qwen2Config(**SIZES)
