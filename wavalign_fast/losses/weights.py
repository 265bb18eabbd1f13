"""Which positions of a hybrid step carry what, known before a single product."""

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
    """Refuses what is no scope."""
    if scope not in SCOPES:
        raise ValueError(f"{name}: got {scope!r}, want one of {', '.join(SCOPES)}")


@dataclass(frozen=True, kw_only=True)
class ScopeWeights:
    """Weight of a text and of a speech token; 0 leaves the class out."""

    text: float
    speech: float

    @classmethod
    def of(cls, name: str, scope: str, text: float, speech: float) -> "ScopeWeights":
        """The weights of ``scope``, after a check that names the argument."""
        check_scope(f"{name}_scope", scope)
        try:
            text, speech = (finite_number(name, weight, low=0.0) for weight in (text, speech))
        except ValueError:
            raise ValueError(
                f"{name} weights: got text {text!r}, speech {speech!r}, want >= 0 and finite"
            ) from None
        return cls(text=text * (scope != "speech"), speech=speech * (scope != "text"))

    def per_token(self, speech: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        """Weights [T] in float64: by class where ``where`` holds, else 0."""
        # Numbers, not a table of them: to send one to a device would be to wait for it.
        text = torch.full_like(speech, self.text, dtype=torch.float64)
        return torch.where(where, torch.where(speech, self.speech, text), 0.0)


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenWeights:
    """Masks and weights of a step, each [T]."""

    speech: torch.Tensor
    completion: torch.Tensor
    policy: torch.Tensor
    anchor: torch.Tensor
    beta: torch.Tensor
    live: torch.Tensor
    """Positions that carry loss; no other is multiplied with the head."""
    text_live: bool
    """Whether all text tokens of the rollouts are live, by configuration alone."""
    speech_live: bool

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
