"""Builds the hybrid loss of a configuration, and finds the ids that it trains."""

import torch

from wavalign_fast.config.schema import LossConfig
from wavalign_fast.losses import SPEECH, HybridObjective, MixingGate, ModalityLayout
from wavalign_fast.ops import LossOptions
from wavalign_fast.train.token_blocks import LossIds

OWN_KEYS = {"mixing", "gate", "backend", "importance_cap"}
"""Keys of ``loss`` that are not parameters of ``HybridObjective`` under the same name."""


def build_objective(config: LossConfig, layout: ModalityLayout, *, kl: bool) -> HybridObjective:
    """Builds the hybrid loss of a config; without ``kl`` it needs no reference log-probs."""
    settings = {
        name: getattr(config, name) for name in LossConfig.model_fields if name not in OWN_KEYS
    }
    if not kl:
        settings |= {"text_kl": 0.0, "speech_kl": 0.0}
    adaptive = config.mixing == "adaptive"
    return HybridObjective(
        layout,
        gate=MixingGate(**config.gate.model_dump(exclude={"scale"}))
        if adaptive
        else float(config.mixing),
        options=LossOptions(backend=config.backend),
        **settings,
    )


def find_loss_ids(objective: HybridObjective) -> LossIds:
    """Finds the ids whose class has a weight in some term of the loss."""
    speech = objective.layout.classify(torch.arange(objective.layout.vocab_size)) == SPEECH
    policy, anchor, kl = (
        torch.tensor(weights.speech > 0).where(speech, torch.tensor(weights.text > 0))
        for weights in (objective.policy_weights, objective.anchor_weights, objective.kl_weights)
    )
    if objective.kl_scope == "completion" and bool(kl.any()):
        # This KL is a mean over all completion tokens, also those outside the policy's scope.
        policy = torch.ones_like(policy)
    return LossIds(policy.tolist(), anchor.tolist())
