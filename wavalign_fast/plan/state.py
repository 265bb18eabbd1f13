"""Bytes that last from step to step, and those of a rollout: arithmetic, without running anything.

Tests count the bytes of real weights, gradients, optimizer states and caches beside it.
"""

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from wavalign_fast.models.attention_shape import attention_windows, head_size, key_heads
from wavalign_fast.plan.planned_run import PlannedRun

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STEP_COUNT = 4
"""AdamW's step count, one float32 a weight."""


def weight_bytes(model: "PreTrainedModel", run: PlannedRun) -> int:
    """Bytes of the weights on a rank."""
    return sum(run.local_elements(w.shape) for w in model.parameters()) * _item(run.weights_dtype)


def gradient_bytes(model: "PreTrainedModel", run: PlannedRun) -> int:
    """Bytes of the gradients on a rank, as they wait for the optimizer in the weights' dtype."""
    return sum(map(run.local_elements, _trained_shapes(model))) * _item(run.weights_dtype)


def moment_bytes(model: "PreTrainedModel", run: PlannedRun) -> int:
    """Bytes of the optimizer's state on a rank."""
    each = MOMENTS[run.optimizer]
    item = _item(run.weights_dtype)
    return sum(each(run.local_elements(shape), item) for shape in _trained_shapes(model))


def reference_bytes(model: "PreTrainedModel", run: PlannedRun) -> int:
    """Bytes of the frozen copy for the KL, which is sharded as the policy is."""
    return weight_bytes(model, run) if run.reference else 0


def twin_bytes(model: "PreTrainedModel", run: PlannedRun) -> int:
    """Bytes of the whole copy of the weights that samples, which is kept from step to step."""
    if not run.samples_a_copy:
        return 0
    return sum(w.numel() for w in model.parameters()) * _item(run.sampling_dtype)


def cache_bytes(config: Any, run: PlannedRun) -> int:
    """Bytes of the keys and values of the completions that a rank decodes at once.

    Args:
        config: of the model; a layer with a sliding window keeps its window only.
    """
    return run.sampled * cached_values(config, run.sampled_length) * _item(run.sampling_dtype)


def cached_values(config: Any, length: int) -> int:
    """Keys and values of one row of ``length`` tokens."""
    config = config.get_text_config()
    kept = sum(min(length, window or length) for window in attention_windows(config))
    return 2 * key_heads(config) * head_size(config) * kept


def decode_bytes(vocab: int, run: PlannedRun) -> int:
    """Bytes of one decoding step: logits, their float32 copy and the probabilities."""
    return run.sampled * vocab * (_item(run.sampling_dtype) + 4 + 4)


def _adamw(elements: int, item: int) -> int:
    return 2 * elements * item + STEP_COUNT


MOMENTS: dict[str, Callable[[int, int], int]] = {"adamw": _adamw}
"""Bytes of an optimizer's state for one weight, from its local elements and bytes of each."""


def _trained_shapes(model: nn.Module) -> Iterable[torch.Size]:
    return (weight.shape for weight in model.parameters() if weight.requires_grad)


def _item(dtype: torch.dtype) -> int:
    return dtype.itemsize


def gib(size: float) -> float:
    """Bytes in GiB."""
    return size / math.pow(2, 30)
