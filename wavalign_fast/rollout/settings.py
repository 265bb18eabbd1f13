"""How completions are sampled."""

from typing import NamedTuple


class Settings(NamedTuple):
    """What is asked of every row alike."""

    group_size: int
    """Completions of a prompt."""
    max_new_tokens: int
    ends: frozenset[int]
    """Ids that end a completion."""
    temperature: float
    """0 is greedy."""
