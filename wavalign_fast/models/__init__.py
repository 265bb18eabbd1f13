"""The seam between causal language models and the fused loss."""

from wavalign_fast.models.causal_lm import (
    check_vocabulary,
    frozen_copy,
    head_of,
    hidden_states,
    load_checkpoint,
)

__all__ = ["check_vocabulary", "frozen_copy", "head_of", "hidden_states", "load_checkpoint"]
