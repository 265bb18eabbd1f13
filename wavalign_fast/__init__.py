"""Fused losses and a training engine for spoken dialogue models (WavAlign, arXiv 2604.14932).

Names are imported when first used, so that the command line answers without loading torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wavalign_fast.losses import (
        SPEECH,
        TEXT,
        DPOOutput,
        HybridBatch,
        HybridObjective,
        HybridOutput,
        MetricTotals,
        MixingGate,
        ModalityLayout,
        Normalisers,
        count_pairs,
        dpo_loss,
        fused_dpo_loss,
        group_advantages,
        mismatch_totals,
        truncated_importance,
    )
    from wavalign_fast.models import OutputHead, output_head
    from wavalign_fast.ops import (
        HeadShard,
        LogitTransform,
        LogProb,
        LossOptions,
        empty_cache,
        linear_logprob,
    )

__all__ = [
    "SPEECH",
    "TEXT",
    "DPOOutput",
    "HeadShard",
    "HybridBatch",
    "HybridObjective",
    "HybridOutput",
    "LogProb",
    "LogitTransform",
    "LossOptions",
    "MetricTotals",
    "MixingGate",
    "ModalityLayout",
    "Normalisers",
    "OutputHead",
    "count_pairs",
    "dpo_loss",
    "empty_cache",
    "fused_dpo_loss",
    "group_advantages",
    "linear_logprob",
    "mismatch_totals",
    "output_head",
    "truncated_importance",
]
_ELSEWHERE = {
    "HeadShard": "ops",
    "LogProb": "ops",
    "LogitTransform": "ops",
    "LossOptions": "ops",
    "empty_cache": "ops",
    "linear_logprob": "ops",
    "OutputHead": "models",
    "output_head": "models",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = import_module(f"wavalign_fast.{_ELSEWHERE.get(name, 'losses')}")
    globals()[name] = getattr(home, name)
    return globals()[name]


def _version() -> str:
    """Of the installed distribution; importing its reader costs more than most uses of the name."""
    metadata = import_module("importlib.metadata")
    try:
        version: str = metadata.version("wavalign-fast")
    except metadata.PackageNotFoundError:
        return "0+unknown"
    return version


def __dir__() -> list[str]:
    return [*globals(), *__all__, "__version__"]
