"""A tiny model for the tests of the plan."""

import json

from transformers import Qwen2Config

SIZES = dict(
    vocab_size=501,
    hidden_size=32,
    intermediate_size=80,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
)


def tiny_config(**sizes) -> Qwen2Config:
    return Qwen2Config(**SIZES | {"tie_word_embeddings": False} | sizes)


def write_config(directory, **sizes) -> None:
    directory.mkdir(parents=True)
    config = tiny_config(**sizes).to_dict()
    (directory / "config.json").write_text(json.dumps(config))
