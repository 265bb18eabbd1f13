"""Fused losses and a training engine for spoken dialogue models (WavAlign, arXiv 2604.14932)."""

from wavalign_fast.losses import (
    SPEECH,
    TEXT,
    HybridBatch,
    HybridObjective,
    HybridOutput,
    MixingGate,
    ModalityLayout,
    group_advantages,
)
from wavalign_fast.ops import LogProb, LossOptions, linear_logprob

__all__ = [
    "SPEECH",
    "TEXT",
    "HybridBatch",
    "HybridObjective",
    "HybridOutput",
    "LogProb",
    "LossOptions",
    "MixingGate",
    "ModalityLayout",
    "group_advantages",
    "linear_logprob",
]
