"""The row kernels' Python face: `wavalign_fast/ops/chunked/row_ops.py` says what they compute."""

import torch

from wavalign_fast.ops.chunked.interface import PITCH_ALIGN, RowChunk, RowGrads, RowStats
from wavalign_fast.ops.chunked.row_ops import operand_view
from wavalign_fast.ops.token_math import TokenTable
from wavalign_fast.ops.triton.configs import row_config
from wavalign_fast.ops.triton.kernels.rows import (
    hybrid_rows_kernel,
    row_gradient_kernel,
    row_stats_kernel,
)
from wavalign_fast.ops.triton.launch import on_device


def row_stats(chunk: RowChunk) -> RowStats:
    """See ``chunked.row_ops.row_stats``.

    Args:
        chunk: float32, bfloat16 or float16 logits; rows a multiple of 64 elements apart, the
            first on a 16-byte boundary. What lies between V and the next row is not touched.
    """
    logits, targets, bias, scale, ignore_index = _checked(chunk)
    stats = _empty_stats(logits)
    vocab = logits.shape[1]
    config = row_config(vocab)
    if len(targets) > 0:
        with on_device(logits):
            row_stats_kernel[(len(targets),)](
                *(logits, targets, bias, *stats),
                *(vocab, _pitch(logits), scale, ignore_index),
                BLOCK=config.block,
                num_warps=config.warps,
            )
    return stats


def row_gradient_(
    chunk: RowChunk, stats: RowStats, grads: RowGrads, *, out_dtype: torch.dtype
) -> torch.Tensor:
    """See ``chunked.row_ops.row_gradient_``."""
    logits, targets, bias, scale, ignore_index = _checked(chunk)
    values = (*_columns(stats, targets), *_columns(grads, targets))
    out = operand_view(logits, out_dtype)
    vocab = logits.shape[1]
    config = row_config(vocab)
    if len(targets) > 0:
        with on_device(logits):
            row_gradient_kernel[(len(targets),)](
                *(logits, out, targets, bias, *values),
                *(vocab, _pitch(logits), scale, ignore_index),
                BLOCK=config.block,
                num_warps=config.warps,
            )
    return out


def hybrid_rows_(
    chunk: RowChunk,
    table: TokenTable,
    *,
    clip: tuple[float, float] | None,
    out_dtype: torch.dtype,
) -> tuple[RowStats, torch.Tensor, torch.Tensor]:
    """See ``chunked.row_ops.hybrid_rows_``; all of it is one launch."""
    logits, targets, bias, scale, ignore_index = _checked(chunk)
    columns = _columns(table, targets)
    out = operand_view(logits, out_dtype)
    stats = _empty_stats(logits)
    g = torch.empty_like(stats.logp)
    vocab = logits.shape[1]
    config = row_config(vocab)
    if len(targets) > 0:
        with on_device(logits):
            hybrid_rows_kernel[(len(targets),)](
                *(logits, out, targets, bias, *columns, *stats, g),
                *(vocab, _pitch(logits), scale, ignore_index),
                *(float(bound) for bound in clip or (0.0, 0.0)),
                CLIP=clip is not None,
                BLOCK=config.block,
                num_warps=config.warps,
            )
    return stats, g, out


def _empty_stats(logits: torch.Tensor) -> RowStats:
    size = len(logits)
    return RowStats(*(logits.new_empty(size, dtype=torch.float32) for _ in RowStats._fields))


def _pitch(logits: torch.Tensor) -> int:
    """How far rows are apart, in units that keep each on a 16-byte boundary."""
    return logits.stride(0) // PITCH_ALIGN


def _columns(
    table: RowStats | RowGrads | TokenTable, targets: torch.Tensor
) -> list[torch.Tensor | None]:
    """A table's columns as the kernels read them; autograd hands out expanded ones."""
    columns: list[torch.Tensor | None] = []
    for name, column in zip(table._fields, table, strict=True):
        if column is None:
            columns.append(None)
            continue
        if column.shape != targets.shape or column.dtype != torch.float32:
            raise ValueError(
                f"{name}: got {column.dtype} {tuple(column.shape)}, want torch.float32 "
                f"{tuple(targets.shape)}"
            )
        columns.append(column.contiguous())
    return columns


def _checked(chunk: RowChunk) -> RowChunk:
    """The chunk as the kernels read it, or a ``ValueError`` that says what they cannot read."""
    logits, targets, bias, scale, ignore_index = chunk
    if logits.dim() != 2 or logits.shape[1] == 0 or logits.stride(1) != 1:
        raise ValueError(
            f"logits: got shape {tuple(logits.shape)} of strides {logits.stride()}, want [R, V] "
            "with V > 0 and contiguous rows"
        )
    apart = logits.stride(0) if logits.shape[0] > 1 else 0
    if apart % PITCH_ALIGN or logits.data_ptr() % 16:
        raise ValueError(
            f"logits: got rows {apart} elements apart from address "
            f"{logits.data_ptr():#x}, want a multiple of {PITCH_ALIGN} and of 16"
        )
    if targets.shape != logits.shape[:1] or targets.dtype != torch.int64:
        raise ValueError(
            f"targets: got {targets.dtype} {tuple(targets.shape)}, want torch.int64 "
            f"{tuple(logits.shape[:1])}"
        )
    if bias is not None and (bias.shape != logits.shape[1:] or bias.dtype != torch.float32):
        raise ValueError(
            f"bias: got {bias.dtype} {tuple(bias.shape)}, want torch.float32 "
            f"{tuple(logits.shape[1:])}"
        )
    bias = None if bias is None else bias.contiguous()
    return RowChunk(logits, targets.contiguous(), bias, float(scale), ignore_index)
