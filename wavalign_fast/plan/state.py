"""Bytes that last from step to step, and those of a rollout: arithmetic, without running anything.

Tests count the bytes of real weights, gradients, optimizer states and caches beside it.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from wavalign_fast.models.attention_shape import attention_windows, head_size, key_heads
from wavalign_fast.plan.planned_run import PlannedRun
from wavalign_fast.rollout.weights import merged_weights
from wavalign_fast.train.muon import body_matrices

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STEP_COUNT = 4
"""AdamW's step count, one float32 a weight."""
QUANTISED_FROM, BLOCK = 4096, 256
"""torchao keeps smaller weights, and those of no whole number of blocks, in the weights' dtype."""


def weight_bytes(model: "PreTrainedModel", run: PlannedRun) -> int:
    """Bytes of the weights on a rank."""
    return sum(run.local_elements(w.shape) * w.element_size() for w in model.parameters())


def gradient_bytes(model: "PreTrainedModel", run: PlannedRun) -> int:
    """Bytes of the gradients on a rank, as they wait for the optimizer in the weights' dtype."""
    trained = (weight for weight in model.parameters() if weight.requires_grad)
    return sum(run.local_elements(w.shape) * w.element_size() for w in trained)


def moment_bytes(model: "PreTrainedModel", run: PlannedRun) -> int:
    """Bytes of the optimizer's state on a rank."""
    by_muon = {id(w) for w in body_matrices(model)} if run.optimizer == "muon" else set()
    total = 0
    for weight in model.parameters():
        if weight.requires_grad:
            name = "adamw" if by_muon and id(weight) not in by_muon else run.optimizer
            total += MOMENTS[name](run.local_elements(weight.shape), weight.element_size())
    return total


def update_bytes(model: "PreTrainedModel", run: PlannedRun) -> int:
    """Scratch bytes of the optimizer's step: Muon works on one whole matrix, in about five copies.

    AdamW's kernels need none.
    """
    if run.optimizer != "muon":
        return 0
    copies = 5 if run.shard > 1 else 4
    return copies * max(w.numel() * w.element_size() for w in body_matrices(model))


def reference_bytes(model: "PreTrainedModel", run: PlannedRun) -> int:
    """Bytes of the frozen copy for the KL, which is sharded as the policy is.

    With adapters it is the model without them and takes none.
    """
    if not run.reference or run.lora_rank:
        return 0
    elements = sum(run.local_elements(weight.shape) for weight in model.parameters())
    return elements * run.compute_dtype.itemsize


def twin_bytes(model: "PreTrainedModel", run: PlannedRun) -> int:
    """Bytes of the whole copy of the weights that samples, with adapters merged into it."""
    if not run.samples_a_copy:
        return 0
    # A tied head with an adapter is a matrix of its own there.
    merged = {id(weight): weight.numel() for weight in merged_weights(model).values()}
    return sum(merged.values()) * run.sampling_dtype.itemsize


def cache_bytes(config: Any, run: PlannedRun) -> int:
    """Bytes of the keys and values of the completions that a rank decodes at once.

    Args:
        config: of the model; a layer with a sliding window keeps its window only.
    """
    return run.sampled * cached_values(config, run.sampled_length) * run.sampling_dtype.itemsize


def cached_values(config: Any, length: int) -> int:
    """Keys and values of one row of ``length`` tokens."""
    config = config.get_text_config()
    kept = sum(min(length, window or length) for window in attention_windows(config))
    return 2 * key_heads(config) * head_size(config) * kept


def decode_bytes(vocab: int, run: PlannedRun) -> int:
    """Bytes of one decoding step: logits, their float32 copy and the probabilities."""
    return run.sampled * vocab * (run.sampling_dtype.itemsize + 4 + 4)


def _adamw(elements: int, item: int) -> int:
    return 2 * elements * item + STEP_COUNT


def _adamw8bit(elements: int, item: int) -> int:
    """torchao's: a byte an element, a float32 scale a block, and a table of the 256 values."""
    if elements < QUANTISED_FROM or elements % BLOCK:
        return _adamw(elements, item)
    return 2 * (elements + elements // BLOCK * 4 + 256 * 4) + STEP_COUNT


def _muon(elements: int, item: int) -> int:
    return elements * item


MOMENTS: dict[str, Callable[[int, int], int]] = {
    "adamw": _adamw,
    "adamw8bit": _adamw8bit,
    "muon": _muon,
}
"""Bytes of an optimizer's state for one weight, from its local elements and bytes of each. Muon is
for matrices of the layers; what else there is has AdamW."""
