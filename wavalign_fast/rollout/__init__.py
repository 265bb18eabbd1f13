"""Sampling completions from a causal LM."""

from wavalign_fast.rollout.sampling import sample_completions

__all__ = ["sample_completions"]
