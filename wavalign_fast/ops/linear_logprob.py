"""Log-probabilities of chosen ids under a linear head, without the logits."""

from typing import NamedTuple

import torch

from wavalign_fast.ops.chunked.api import gpu_logprob
from wavalign_fast.ops.chunked.compaction import LiveRows, select_live_rows
from wavalign_fast.ops.cpu import cpu_logprob
from wavalign_fast.ops.inputs import true_or_false, whole_number
from wavalign_fast.ops.logit_transform import LogitForm, LogitTransform
from wavalign_fast.ops.operands import IGNORE_INDEX, Operands, checked_operands
from wavalign_fast.ops.options import LossOptions
from wavalign_fast.ops.reference import reference_logprob
from wavalign_fast.ops.sharded.api import sharded_logprobs
from wavalign_fast.ops.sharded.head import HeadShard
from wavalign_fast.ops.transfer import copied_together


class LogProb(NamedTuple):
    """Results for each position, in the shape of ``targets``; ignored positions hold 0.

    Args:
        logp: log-probability of the target, in nats.
        entropy: entropy of the distribution, in nats; ``None`` where it was not asked for.
        lse: log-sum-exp of the logits.
        top: bool, whether the target is the most likely id; ``None`` where it was not asked for.
            Ids whose log-probs are equal as ``logp`` holds them, rounded to its dtype, are all the
            most likely one. False at ignored positions and where ``logp`` is NaN.
    """

    logp: torch.Tensor
    entropy: torch.Tensor | None
    lse: torch.Tensor
    top: torch.Tensor | None = None


def linear_logprob(
    hidden: torch.Tensor,
    weight: torch.Tensor | HeadShard,
    targets: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    temperature: float = 1.0,
    ignore_index: int = IGNORE_INDEX,
    with_entropy: bool = False,
    with_top: bool = False,
    transform: LogitTransform | None = None,
    options: LossOptions | None = None,
) -> LogProb:
    """``log softmax(hidden W^T / temperature + bias)[target]`` for every position.

    ``transform`` changes the logits: a scale, a soft cap, the bias before the temperature.

    Differentiable once, by a backward pass, in ``hidden``, ``weight`` and ``bias`` through all
    three results; ``reference`` also has higher derivatives, forward mode and torch.func. Rows
    whose target is ``ignore_index`` are not read: their results are 0 and they get no gradient. A
    position's results have the same bits whatever the batch around it, except from ``reference``,
    which leaves the order of its sums to torch's GEMM.

    Args:
        hidden: [..., H], float32, bfloat16 or float16 (``reference``: also float64).
        weight: [V, H], the dtype of ``hidden``; or this rank's slice of it, a ``HeadShard``, whose
            group then calls together.
        targets: [...] integers in [0, V) or ``ignore_index``. With ``hidden`` on a GPU they may
            stay on the CPU; the host then knows without a sync which rows to compute.
        bias: [V] floats, or beside a ``HeadShard`` the slice of them, added after the division by
            the temperature unless ``transform`` says before; ``-inf`` bans an id.
        temperature: divides ``hidden W^T``, behind a scale and a cap; at least 1.2e-38, the
            smallest normal float32. It gets no gradient: to learn a temperature, divide ``hidden``
            by it.
        ignore_index: the target of rows that are left out; any int64.
        with_entropy: also return the entropy.
        with_top: also return whether the target is the most likely id. The kernels have the largest
            logit at hand, so nothing is computed twice for it.
        transform: what the model does to its logits, as ``output_head`` finds it.
        options: backend, memory and accuracy; by default all at their defaults.

    Returns:
        float32 ``logp``, ``entropy`` (or ``None``) and ``lse`` in the shape of ``targets``; float64
        for float64 operands. ``top`` is bool (or ``None``).

    Raises:
        ValueError: shapes, dtypes, devices, ids or options that do not fit; the message has the
            value seen and the value wanted.
        RuntimeError: the call needs a derivative that the backend does not have.
    """
    form = LogitForm.of(temperature, transform)
    ignore_index = whole_number("ignore_index", ignore_index, low=None)
    if not -(2**63) <= ignore_index < 2**63:
        raise ValueError(f"ignore_index: got {ignore_index}, want an int64")
    true_or_false("with_entropy", with_entropy)
    true_or_false("with_top", with_top)
    operands = checked_operands(hidden, weight, targets, bias, ignore_index, options, form)
    scores = compute_logprobs(operands, ignore_index=ignore_index, with_top=with_top)
    shape, top = targets.shape, scores.top
    return LogProb(
        scores.logp.reshape(shape),
        scores.entropy.reshape(shape) if with_entropy and scores.entropy is not None else None,
        scores.lse.reshape(shape),
        None if top is None else top.reshape(shape),
    )


def compute_logprobs(
    operands: Operands,
    *,
    ignore_index: int = IGNORE_INDEX,
    with_top: bool = False,
    live: LiveRows | None = None,
) -> LogProb:
    """Log-probs, entropies, lse and, if asked for, ``top`` of checked operands, each [T].

    Args:
        live: the live rows, on the device of the operands, where the caller has selected them
            already; for a GPU backend only.
    """
    if operands.shard is None and operands.backend == "cpu":
        return LogProb(*cpu_logprob(operands, ignore_index, with_top=with_top))
    if operands.shard is None and operands.backend == "reference":
        return LogProb(
            *reference_logprob(
                operands.rows,
                operands.weight,
                operands.targets,
                operands.bias,
                operands.form,
                ignore_index,
                with_top,
            )
        )
    if live is None:
        (live,) = copied_together(operands.rows.device, select_live_rows(operands, ignore_index))
    compute = gpu_logprob if operands.shard is None else sharded_logprobs
    return LogProb(*compute(operands, live, ignore_index, with_top=with_top))
