"""The seam between causal language models and the fused loss."""

from wavalign_fast.models.causal_lm import (
    check_vocabulary,
    frozen_copy,
    hidden_states,
    load_checkpoint,
)
from wavalign_fast.models.head import OutputHead, output_head

__all__ = [
    "OutputHead",
    "check_vocabulary",
    "frozen_copy",
    "hidden_states",
    "load_checkpoint",
    "output_head",
]
