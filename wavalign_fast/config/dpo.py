"""The group ``dpo``: preference pairs and their loss."""

from typing import Annotated, Literal

from pydantic import Field

from wavalign_fast.config.group import Group, Positive, Scope, Weight


class DPOConfig(Group):
    """Preference pairs and their loss, for ``method: dpo``.

    Each prompt of a step, ``rollout.prompts`` of them, gives the pairs of one prompt.
    """

    pairs: Literal["offline", "online", "auto"] = "auto"
    """offline: the pairs of dpo.file or the recipe; online: made of rollouts; auto: offline for
    prompts that have one, online for the others."""
    file: Annotated[str, Field(min_length=1)] | None = None
    """JSONL file of offline pairs: prompt_ids, chosen_ids, rejected_ids, and id, that of a training
    example. By default the recipe's own pairs."""
    chosen: Literal["best", "demonstration"] = "best"
    """Online, best: the best rollout of a prompt beside its worst, by reward; demonstration: the
    recipe's demonstration beside every rollout, without rewards (the released code)."""
    min_gap: Weight = 0.5
    """Smallest difference between the best and the worst reward that makes a pair (the paper's
    δ)."""
    scope: Scope = "text"
    """Tokens whose log-probs count."""
    beta: Positive = 0.1
    """How strongly the policy is held to the model that it started from."""
    length_normalised: bool = False
    """Compare means over a sequence's tokens instead of sums."""
