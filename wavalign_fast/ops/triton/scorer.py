"""Log-probs without stored logits or gradients, for reference scores, evaluation and metrics."""

from typing import NamedTuple

import torch
import triton

from wavalign_fast.ops.chunked.interface import RowStats
from wavalign_fast.ops.triton.configs import FP_FUSION, MERGE, scorer_config
from wavalign_fast.ops.triton.kernels.scorer import score_merge_kernel, score_spans_kernel
from wavalign_fast.ops.triton.launch import on_device

ROWS_PER_LAUNCH = 16_384
"""Bounds the scratch memory: 12 bytes for each row and span of the vocabulary."""
STRIDE_LIMIT = 2**31 // 512
"""Elements between rows. A tile has at most 256 rows, so offsets inside it fit in 32 bits."""


def score(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    scale: float,
    softcap: float | None = None,
    ignore_index: int,
) -> RowStats:
    """Statistics of ``z = cap(hidden W^T) * scale + bias`` for each row, without storing logits.

    ``cap(x) = softcap * tanh(x / softcap)`` is part of the model, so it precedes the temperature
    (in ``scale``) and the bias; a bias of -inf still bans an id. Not differentiable. The bits of a
    row do not depend on the other rows.

    Args:
        hidden: [N, H] bfloat16, float16 or float32 (computed without TF32); rows contiguous.
        weight: [V, H] in the dtype of ``hidden``; rows contiguous. If H is not a multiple of 16,
            the kernel is slower.
        targets: [N] int64; ``ignore_index`` marks a dead row, whose hidden state is not used.
        bias: [V] float32 or ``None``.

    Raises:
        ValueError: a shape, stride or dtype is none of these, or ``softcap`` is not positive.
    """
    _check(hidden, weight, targets, bias, softcap)
    hidden, weight = _aligned(hidden), _aligned(weight)
    targets, bias = targets.contiguous(), None if bias is None else bias.contiguous()
    stats = RowStats(*hidden.new_empty((4, hidden.shape[0]), dtype=torch.float32).unbind())
    with on_device(hidden):
        for first in range(0, hidden.shape[0], ROWS_PER_LAUNCH):
            part = slice(first, first + ROWS_PER_LAUNCH)
            sums = _score_spans(
                hidden=hidden[part],
                weight=weight,
                targets=targets[part],
                bias=bias,
                scale=float(scale),
                softcap=None if softcap is None else float(softcap),
                ignore_index=ignore_index,
            )
            _merge_spans(
                sums,
                targets[part],
                RowStats(*(value[part] for value in stats)),
                vocab=weight.shape[0],
                ignore_index=ignore_index,
            )
    return stats


class SpanSums(NamedTuple):
    """Sums of an online softmax over each span of the vocabulary, [spans, N] each."""

    tops: torch.Tensor
    totals: torch.Tensor
    weighteds: torch.Tensor
    at_target: torch.Tensor
    """[N]: the target's logit, which lies in one span."""


def _score_spans(
    *,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    scale: float,
    softcap: float | None,
    ignore_index: int,
) -> SpanSums:
    rows, hidden_size = hidden.shape
    vocab = weight.shape[0]
    plain = bias is None and softcap is None
    config = scorer_config(hidden.dtype, hidden_size, plain=plain)
    spans = triton.cdiv(vocab, config.ids * config.tiles)
    tops, totals, weighteds = hidden.new_empty((3, spans, rows), dtype=torch.float32).unbind()
    at_target = hidden.new_empty(rows, dtype=torch.float32)
    score_spans_kernel[(triton.cdiv(rows, config.rows), spans)](
        hidden=hidden,
        weight=weight,
        targets=targets,
        bias=bias,
        tops=tops,
        totals=totals,
        weighteds=weighteds,
        at_target=at_target,
        rows=rows,
        vocab=vocab,
        hidden_size=hidden_size,
        hidden_stride=_apart(hidden),
        weight_stride=_apart(weight),
        scale=scale,
        softcap=softcap,
        ignore_index=ignore_index,
        EVEN=hidden_size % config.inner == 0,
        PRECISION="ieee" if hidden.dtype == torch.float32 else "tf32",
        ROWS=config.rows,
        IDS=config.ids,
        INNER=config.inner,
        TILES=config.tiles,
        DISABLE_LICM=not config.licm,
        num_warps=config.warps,
        enable_fp_fusion=FP_FUSION,
        num_stages=config.stages,
    )
    return SpanSums(tops, totals, weighteds, at_target)


def _merge_spans(
    sums: SpanSums, targets: torch.Tensor, stats: RowStats, *, vocab: int, ignore_index: int
) -> None:
    """Writes ``stats`` from the sums of the spans, in the order of the vocabulary."""
    spans, rows = sums.tops.shape
    score_merge_kernel[(triton.cdiv(rows, MERGE.rows),)](
        tops=sums.tops,
        totals=sums.totals,
        weighteds=sums.weighteds,
        at_target=sums.at_target,
        targets=targets,
        logp=stats.logp,
        entropy=stats.entropy,
        top=stats.top,
        log_sum=stats.log_sum,
        rows=rows,
        vocab=vocab,
        spans=spans,
        ignore_index=ignore_index,
        ROWS=MERGE.rows,
        SPANS=MERGE.spans,
        num_warps=MERGE.warps,
        enable_fp_fusion=FP_FUSION,
    )


def _aligned(operand: torch.Tensor) -> torch.Tensor:
    """The operand, or a copy whose rows start on 16-byte boundaries if H allows that.

    Alignment must not change the compiled kernel: the same row would get other bits elsewhere.
    """
    if operand.shape[1] % 16 or (_apart(operand) % 16 == 0 and operand.data_ptr() % 16 == 0):
        return operand
    return operand.clone(memory_format=torch.contiguous_format)


def _apart(operand: torch.Tensor) -> int:
    """The row stride in elements; the stride of a single row may have any value."""
    return operand.stride(0) if operand.shape[0] > 1 else operand.shape[1]


def _check(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    softcap: float | None,
) -> None:
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden {tuple(hidden.shape)} and weight {tuple(weight.shape)}: want [N, H] and [V, H]"
        )
    if hidden.stride(1) != 1 or weight.stride(1) != 1 or weight.shape[0] == 0:
        raise ValueError(
            f"hidden of strides {hidden.stride()}, weight {tuple(weight.shape)} of strides "
            f"{weight.stride()}: want contiguous rows and V > 0"
        )
    if max(_apart(hidden), _apart(weight)) > STRIDE_LIMIT:
        raise ValueError(
            f"hidden of strides {hidden.stride()}, weight of strides {weight.stride()}: want rows "
            f"at most {STRIDE_LIMIT} elements apart, because offsets in a tile have 32 bits"
        )
    if hidden.dtype != weight.dtype:
        raise ValueError(f"hidden is {hidden.dtype} but weight is {weight.dtype}, want one dtype")
    if targets.shape != hidden.shape[:1] or targets.dtype != torch.int64:
        raise ValueError(
            f"targets: got {targets.dtype} {tuple(targets.shape)}, want torch.int64 "
            f"{tuple(hidden.shape[:1])}"
        )
    if bias is not None and (bias.shape != weight.shape[:1] or bias.dtype != torch.float32):
        raise ValueError(
            f"bias: got {bias.dtype} {tuple(bias.shape)}, want torch.float32 "
            f"{tuple(weight.shape[:1])}"
        )
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap: got {softcap}, want > 0 or None")
