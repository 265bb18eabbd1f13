"""Connects causal language models to the fused losses."""

from wavalign_fast.models.attention import set_attention
from wavalign_fast.models.causal_lm import check_vocabulary, frozen_copy, hidden_states
from wavalign_fast.models.head import (
    OutputHead,
    check_head_can_be_sharded,
    is_adapted,
    output_head,
    second_head,
    sharded_head,
)
from wavalign_fast.models.layers import compile_layers, decoder_layers, unsplit_modules
from wavalign_fast.models.liger import check_liger, use_liger
from wavalign_fast.models.loading import (
    cast_weights,
    check_same_shapes,
    load_checkpoint,
    shapes_of,
)
from wavalign_fast.models.logit_transform import logit_transform
from wavalign_fast.models.lora import (
    add_lora,
    has_lora,
    insert_adapters,
    lora_bytes,
    without_lora,
)
from wavalign_fast.models.packing import PackedRows
from wavalign_fast.models.prompt_embeddings import EmbeddedBlock, PromptEmbeddings
from wavalign_fast.models.shard_loading import empty_model, fill_shards, middle_rows
from wavalign_fast.models.transformers_names import recompute_activations
from wavalign_fast.models.two_streams import StreamBlock, TwoStreams, heads_of

__all__ = [
    "EmbeddedBlock",
    "OutputHead",
    "PackedRows",
    "PromptEmbeddings",
    "StreamBlock",
    "TwoStreams",
    "add_lora",
    "cast_weights",
    "check_head_can_be_sharded",
    "check_liger",
    "check_same_shapes",
    "check_vocabulary",
    "compile_layers",
    "decoder_layers",
    "empty_model",
    "fill_shards",
    "frozen_copy",
    "has_lora",
    "heads_of",
    "hidden_states",
    "insert_adapters",
    "is_adapted",
    "load_checkpoint",
    "logit_transform",
    "lora_bytes",
    "middle_rows",
    "output_head",
    "recompute_activations",
    "second_head",
    "set_attention",
    "shapes_of",
    "sharded_head",
    "unsplit_modules",
    "use_liger",
    "without_lora",
]
