"""Samples completions from a causal LM."""

from wavalign_fast.rollout.checks import end_ids
from wavalign_fast.rollout.draws import uniforms
from wavalign_fast.rollout.sampling import Sampled, sample_completions, sample_with_logps

__all__ = ["Sampled", "end_ids", "sample_completions", "sample_with_logps", "uniforms"]
