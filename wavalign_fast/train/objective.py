"""Builds the hybrid loss of a configuration, and finds the ids that it trains."""

import torch

from wavalign_fast.config.schema import LossConfig
from wavalign_fast.losses import SPEECH, HybridObjective, MixingGate, ModalityLayout
from wavalign_fast.losses.two_heads import TwoHeadObjective
from wavalign_fast.models import TwoStreams
from wavalign_fast.ops import LossOptions
from wavalign_fast.train.token_blocks import LossIds

OWN_KEYS = {"mixing", "gate", "backend", "importance_cap"}
"""Keys of ``loss`` that are not parameters of ``HybridObjective`` under the same name."""


Objective = HybridObjective | TwoHeadObjective


def build_objective(
    config: LossConfig, layout: ModalityLayout, *, kl: bool, streams: TwoStreams | None = None
) -> Objective:
    """Builds the hybrid loss of a config; without ``kl`` it needs no reference log-probs.

    Args:
        streams: of a model with two streams; the loss is then that of both heads.
    """
    settings = {
        name: getattr(config, name) for name in LossConfig.model_fields if name not in OWN_KEYS
    }
    if not kl:
        settings |= {"text_kl": 0.0, "speech_kl": 0.0}
    settings["options"] = LossOptions(backend=config.backend)
    gate: MixingGate | float
    if config.mixing == "adaptive":
        gate = MixingGate(**config.gate.model_dump(exclude={"scale"}))
    else:
        gate = float(config.mixing)
    if streams is not None:
        return TwoHeadObjective(layout, streams.rows, gate=gate, **settings)
    return HybridObjective(layout, gate=gate, **settings)


def find_loss_ids(objective: Objective, forced: int | None = None) -> LossIds:
    """Finds the ids whose class has a weight in some term of the loss.

    Args:
        forced: the id that stands where nobody chose one; it carries no loss.
    """
    if isinstance(objective, TwoHeadObjective):
        objective = objective.joint
    speech = objective.layout.classify(torch.arange(objective.layout.vocab_size)) == SPEECH
    policy, anchor, kl = (
        torch.tensor(weights.speech > 0).where(speech, torch.tensor(weights.text > 0))
        for weights in (objective.policy_weights, objective.anchor_weights, objective.kl_weights)
    )
    if objective.kl_scope == "completion" and bool(kl.any()):
        # This KL is a mean over all completion tokens, also those outside the policy's scope.
        policy = torch.ones_like(policy)
    if forced is not None:
        policy[forced] = anchor[forced] = False
    return LossIds(policy.tolist(), anchor.tolist(), forced)
