"""Samples completions from a causal LM."""

from wavalign_fast.rollout.checks import end_ids
from wavalign_fast.rollout.draws import uniforms
from wavalign_fast.rollout.sampling import Sampled, sample_completions, sample_with_logps
from wavalign_fast.rollout.twin import Twin

__all__ = ["Sampled", "Twin", "end_ids", "sample_completions", "sample_with_logps", "uniforms"]
