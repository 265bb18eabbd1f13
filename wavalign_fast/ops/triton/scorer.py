"""Log-probabilities without logits and without gradients: reference scores, evaluation, metrics."""

import torch
import triton

from wavalign_fast.ops.chunked.interface import RowStats
from wavalign_fast.ops.triton.configs import MERGE, scorer_config
from wavalign_fast.ops.triton.kernels.scorer import score_merge_kernel, score_spans_kernel
from wavalign_fast.ops.triton.launch import on_device

ROWS_A_LAUNCH = 16_384
"""Bounds the scratch memory, 12 bytes for each row and span of the vocabulary."""
ROW_LIMIT = 2**31 // 512


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
    """Statistics of ``z = cap(hidden W^T) * scale + bias``, with no logit in memory.

    ``cap(x) = softcap * tanh(x / softcap)`` belongs to the model: it comes before the temperature,
    and a bias of -inf bans an id in spite of it. Not differentiable. A row's bits do not depend on
    the other rows.

    Args:
        hidden: [N, H] bfloat16, float16 or float32 (then without TF32); rows contiguous.
        weight: [V, H], the dtype of ``hidden``; rows contiguous. An H that does not divide by 16
            is right and slower.
        targets: [N] int64; ``ignore_index`` marks a dead row, whose hidden state is not used.
        bias: [V] float32 or ``None``.
    """
    _check(hidden, weight, targets, bias, softcap)
    hidden, weight = _aligned(hidden), _aligned(weight)
    targets, bias = targets.contiguous(), None if bias is None else bias.contiguous()
    stats = RowStats(*hidden.new_empty((4, hidden.shape[0]), dtype=torch.float32).unbind())
    with on_device(hidden):
        for first in range(0, hidden.shape[0], ROWS_A_LAUNCH):
            part = slice(first, first + ROWS_A_LAUNCH)
            _score_rows(
                hidden=hidden[part],
                weight=weight,
                targets=targets[part],
                bias=bias,
                stats=RowStats(*(value[part] for value in stats)),
                scale=float(scale),
                softcap=None if softcap is None else float(softcap),
                ignore_index=ignore_index,
            )
    return stats


def _score_rows(
    *,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    stats: RowStats,
    scale: float,
    softcap: float | None,
    ignore_index: int,
) -> None:
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
        num_warps=config.warps,
        num_stages=config.stages,
    )
    score_merge_kernel[(triton.cdiv(rows, MERGE.rows),)](
        tops=tops,
        totals=totals,
        weighteds=weighteds,
        at_target=at_target,
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
    )


def _aligned(operand: torch.Tensor) -> torch.Tensor:
    """A copy where rows could be but are not on 16-byte boundaries.

    Their alignment must not choose the tile: the same row would have other bits elsewhere.
    """
    if operand.shape[1] % 16 or (_apart(operand) % 16 == 0 and operand.data_ptr() % 16 == 0):
        return operand
    return operand.clone(memory_format=torch.contiguous_format)


def _apart(operand: torch.Tensor) -> int:
    """Elements from a row to the next; the stride of a single row may be anything."""
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
    if max(_apart(hidden), _apart(weight)) > ROW_LIMIT:
        raise ValueError(
            f"hidden of strides {hidden.stride()}, weight of strides {weight.stride()}: want rows "
            f"at most {ROW_LIMIT} elements apart, for offsets in a tile have 32 bits"
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
