"""Losses from log-probabilities, and the fused hybrid objective."""

from wavalign_fast.losses.advantage import group_advantages
from wavalign_fast.losses.batch import HybridBatch
from wavalign_fast.losses.dpo import DPOOutput, count_pairs, dpo_loss, fused_dpo_loss
from wavalign_fast.losses.gate import MixingGate
from wavalign_fast.losses.hybrid import HybridObjective, HybridOutput
from wavalign_fast.losses.layout import SPEECH, TEXT, ModalityLayout
from wavalign_fast.losses.normalisers import Normalisers

__all__ = [
    "SPEECH",
    "TEXT",
    "DPOOutput",
    "HybridBatch",
    "HybridObjective",
    "HybridOutput",
    "MixingGate",
    "ModalityLayout",
    "Normalisers",
    "count_pairs",
    "dpo_loss",
    "fused_dpo_loss",
    "group_advantages",
]
