"""Ops over the vocabulary: log-probabilities and their gradients."""

from wavalign_fast.ops.backends import backend_status
from wavalign_fast.ops.extension import empty_cache
from wavalign_fast.ops.linear_logprob import LogProb, linear_logprob
from wavalign_fast.ops.logit_transform import LogitTransform
from wavalign_fast.ops.operands import IGNORE_INDEX
from wavalign_fast.ops.options import LossOptions
from wavalign_fast.ops.sharded.head import HeadShard

__all__ = [
    "IGNORE_INDEX",
    "HeadShard",
    "LogProb",
    "LogitTransform",
    "LossOptions",
    "backend_status",
    "empty_cache",
    "linear_logprob",
]
