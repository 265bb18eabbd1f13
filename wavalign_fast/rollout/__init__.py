"""Samples completions from a causal LM."""

from wavalign_fast.rollout.checks import end_ids
from wavalign_fast.rollout.draws import uniforms
from wavalign_fast.rollout.sampling import sample_completions

__all__ = ["end_ids", "sample_completions", "uniforms"]
