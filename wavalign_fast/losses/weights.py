"""The mask and the weight of every position in each term, known before any GEMM."""

from dataclasses import dataclass
from typing import Any, Literal

import torch

from wavalign_fast.losses.batch import HybridBatch
from wavalign_fast.losses.layout import SPEECH, ModalityLayout
from wavalign_fast.ops.inputs import finite_number

Scope = Literal["all", "text", "speech"]
KLScope = Literal["policy", "completion"]
SCOPES: tuple[Scope, ...] = ("all", "text", "speech")


def check_scope(name: str, scope: Any) -> None:
    """Refuses anything but a scope."""
    if scope not in SCOPES:
        raise ValueError(f"{name}: got {scope!r}, want one of {', '.join(SCOPES)}")


@dataclass(frozen=True, kw_only=True)
class ScopeWeights:
    """The weight of a text and of a speech token; 0 leaves the class out."""

    text: float
    speech: float

    @classmethod
    def of(cls, name: str, scope: str, text: float, speech: float) -> "ScopeWeights":
        """The weights of the classes in ``scope``; ``name`` is the term's in error messages."""
        check_scope(f"{name}_scope", scope)
        try:
            text, speech = (finite_number(name, weight, low=0.0) for weight in (text, speech))
        except ValueError:
            raise ValueError(
                f"{name} weights: got text {text!r}, speech {speech!r}, want >= 0 and finite"
            ) from None
        return cls(text=text * (scope != "speech"), speech=speech * (scope != "text"))

    def per_token(self, speech: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        """[T] float64: the weight of the position's class where ``where`` holds, else 0."""
        # Numbers, not a tensor of them: copying one to a device would be a host sync.
        text = torch.full_like(speech, self.text, dtype=torch.float64)
        return torch.where(where, torch.where(speech, self.speech, text), 0.0)


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenWeights:
    """Masks (bool) and weights (float64) of the positions of a step, each [T]."""

    speech: torch.Tensor
    """Whether the target is speech."""
    completion: torch.Tensor
    """Whether the position is in a rollout."""
    policy: torch.Tensor
    """Weight in the policy term, before any mean."""
    anchor: torch.Tensor
    """Weight in the anchor, before any mean."""
    beta: torch.Tensor
    """β of the KL."""
    live: torch.Tensor
    """Whether the position carries loss; no other is multiplied with the head."""
    text_live: bool
    """Whether all text tokens of rollouts are live, which the options alone decide."""
    speech_live: bool
    """The same for speech tokens."""

    @classmethod
    def of(
        cls,
        batch: HybridBatch,
        layout: ModalityLayout,
        *,
        policy: ScopeWeights,
        anchor: ScopeWeights,
        kl: ScopeWeights,
        kl_scope: KLScope,
    ) -> "TokenWeights":
        """The masks and weights of ``batch``, with the weights of each term by class."""
        completion, labelled = batch.policy_row >= 0, batch.anchor_row >= 0
        used = completion | labelled
        speech = layout.classify_as("batch.targets", torch.where(used, batch.targets, 0)) == SPEECH
        policy_weight = policy.per_token(speech, completion)
        anchor_weight = anchor.per_token(speech, labelled)
        beta = kl.per_token(speech, completion)
        live = (policy_weight > 0) | (anchor_weight > 0)
        own_kl = kl_scope == "completion"
        if own_kl:
            live = live | (beta > 0)
        return cls(
            speech=speech,
            completion=completion,
            policy=policy_weight,
            anchor=anchor_weight,
            beta=beta,
            live=live,
            text_live=policy.text > 0 or (own_kl and kl.text > 0),
            speech_live=policy.speech > 0 or (own_kl and kl.speech > 0),
        )
