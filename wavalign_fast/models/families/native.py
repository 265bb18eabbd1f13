"""Builds native models of transformers from the fields of a family's configuration."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from wavalign_fast.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

QWEN2_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "rms_norm_eps",
    "max_position_embeddings",
    "initializer_range",
    "attention_dropout",
    "use_sliding_window",
    "sliding_window",
    "max_window_layers",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
"""What a family's configuration says of its Qwen2 part, by the names of Qwen2."""


def qwen2_config(config: Mapping[str, Any], *, layers: int) -> "PreTrainedConfig":
    """Returns the configuration of the Qwen2 part of a family.

    Raises:
        UserError: the embedding and the head are tied, which no family does.
    """
    from transformers import Qwen2Config

    refuse_tied(config)
    fields = {name: config[name] for name in QWEN2_FIELDS if config.get(name) is not None}
    return Qwen2Config(num_hidden_layers=layers, tie_word_embeddings=False, **fields)


def qwen2_model(config: Mapping[str, Any], *, layers: int, dtype: torch.dtype) -> "PreTrainedModel":
    """Builds the language model of a family that is Qwen2 inside."""
    return causal_lm(qwen2_config(config, layers=layers), dtype)


def causal_lm(config: "PreTrainedConfig", dtype: torch.dtype) -> "PreTrainedModel":
    """Builds the native model of a native configuration, in eval mode."""
    from transformers import AutoModelForCausalLM

    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        config, dtype=dtype, trust_remote_code=False
    )
    return model.eval()


def refuse_tied(config: Mapping[str, Any]) -> None:
    """Raises ``UserError`` if the head shares the weight of the embedding."""
    if config.get("tie_word_embeddings"):
        raise UserError(
            "config.json: tie_word_embeddings is true, wanted false: the family has a head of its "
            "own"
        )


def field(config: Mapping[str, Any], name: str) -> Any:
    """Returns a field of ``config.json``.

    Raises:
        UserError: it is missing.
    """
    if config.get(name) is None:
        raise UserError(f"config.json: {name} is missing")
    return config[name]
