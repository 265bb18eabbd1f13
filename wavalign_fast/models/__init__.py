"""Connects causal language models to the fused losses."""

from wavalign_fast.models.causal_lm import (
    check_vocabulary,
    frozen_copy,
    hidden_states,
    load_checkpoint,
)
from wavalign_fast.models.head import OutputHead, output_head
from wavalign_fast.models.transformers_names import recompute_activations

__all__ = [
    "OutputHead",
    "check_vocabulary",
    "frozen_copy",
    "hidden_states",
    "load_checkpoint",
    "output_head",
    "recompute_activations",
]
