"""Losses from log-probabilities, and the fused hybrid objective."""

from wavalign_fast.losses.advantage import group_advantages
from wavalign_fast.losses.batch import HybridBatch
from wavalign_fast.losses.dpo import DPOOutput, count_pairs, dpo_loss, fused_dpo_loss
from wavalign_fast.losses.gate import MixingGate
from wavalign_fast.losses.hybrid import HybridObjective
from wavalign_fast.losses.layout import SPEECH, TEXT, ModalityLayout
from wavalign_fast.losses.mismatch import mismatch_totals, truncated_importance
from wavalign_fast.losses.normalisers import Normalisers
from wavalign_fast.losses.output import HybridOutput
from wavalign_fast.losses.totals import MetricTotals

__all__ = [
    "SPEECH",
    "TEXT",
    "DPOOutput",
    "HybridBatch",
    "HybridObjective",
    "HybridOutput",
    "MetricTotals",
    "MixingGate",
    "ModalityLayout",
    "Normalisers",
    "count_pairs",
    "dpo_loss",
    "fused_dpo_loss",
    "group_advantages",
    "mismatch_totals",
    "truncated_importance",
]
