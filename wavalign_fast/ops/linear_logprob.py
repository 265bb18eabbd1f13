"""Log-probabilities of chosen ids under a linear head, without the logits."""

from typing import NamedTuple

import torch

from wavalign_fast.ops.chunked.api import gpu_logprob
from wavalign_fast.ops.chunked.compaction import LiveRows, select_live_rows
from wavalign_fast.ops.cpu import cpu_logprob
from wavalign_fast.ops.inputs import (
    SMALLEST_TEMPERATURE,
    finite_number,
    true_or_false,
    whole_number,
)
from wavalign_fast.ops.operands import IGNORE_INDEX, Operands, checked_operands
from wavalign_fast.ops.options import LossOptions
from wavalign_fast.ops.reference import reference_logprob
from wavalign_fast.ops.transfer import copied_together


class LogProb(NamedTuple):
    """Per-position results, each of the shape of ``targets``; ignored positions hold 0."""

    logp: torch.Tensor
    entropy: torch.Tensor | None
    lse: torch.Tensor


def linear_logprob(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    temperature: float = 1.0,
    ignore_index: int = IGNORE_INDEX,
    with_entropy: bool = False,
    options: LossOptions | None = None,
) -> LogProb:
    """``log softmax(hidden W^T / temperature + bias)[target]`` for every position.

    Differentiable once in ``hidden``, ``weight`` and ``bias``, through all three results, by a
    backward pass (``reference``: as often as asked, forward-mode and torch.func as well). Rows
    whose target is ``ignore_index`` are not read: they hold 0 and give no gradient. A position's
    results have the same bits whatever the batch around it, from every backend but ``reference``,
    whose products are the library's.

    Args:
        hidden: [..., H], float32, bfloat16 or float16 (``reference``: also float64).
        weight: [V, H], the dtype of ``hidden``.
        targets: [...] integers in [0, V) or ``ignore_index``. With ``hidden`` on a GPU they may
            stay on the CPU: the rows to be multiplied are then known without waiting for the GPU.
        bias: [V] floats, added after the temperature; ``-inf`` bans an id.
        temperature: divides the product; at least 1.2e-38, the smallest normal float32. It gets
            no gradient: to learn one, divide ``hidden`` by it.
        with_entropy: also return the entropy in nats.

    Returns:
        float32 ``logp``, ``entropy`` (or ``None``) and ``lse`` in the shape of ``targets``; float64
        for float64 operands.

    Raises:
        ValueError: shapes, dtypes, devices, ids or options that do not fit; the message has both
            values.
        RuntimeError: a derivative is asked for that the backend does not have.
    """
    temperature = finite_number("temperature", temperature, above=0)
    if temperature < SMALLEST_TEMPERATURE:
        raise ValueError(f"temperature: got {temperature}, want >= {SMALLEST_TEMPERATURE:.1e}")
    ignore_index = whole_number("ignore_index", ignore_index, low=None)
    if not -(2**63) <= ignore_index < 2**63:
        raise ValueError(f"ignore_index: got {ignore_index}, want an int64")
    true_or_false("with_entropy", with_entropy)
    operands = checked_operands(hidden, weight, targets, bias, ignore_index, options)
    scores = compute_logprobs(operands, temperature=temperature, ignore_index=ignore_index)
    logp, entropy, lse = (values.reshape(targets.shape) for values in scores)
    return LogProb(logp, entropy if with_entropy else None, lse)


def compute_logprobs(
    operands: Operands,
    *,
    temperature: float = 1.0,
    ignore_index: int = IGNORE_INDEX,
    live: LiveRows | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``(logp, entropy, lse)``, each [T], of operands that are checked already.

    ``live``: the call's rows, for a GPU backend and on its device, where something is known of
    them.
    """
    if operands.backend == "reference":
        return reference_logprob(
            operands.rows,
            operands.weight,
            operands.targets,
            operands.bias,
            temperature,
            ignore_index,
        )
    if operands.backend == "cpu":
        return cpu_logprob(operands, temperature, ignore_index)
    if live is None:
        (live,) = copied_together(operands.rows.device, select_live_rows(operands, ignore_index))
    return gpu_logprob(operands, live, temperature, ignore_index)
