"""Launchers of the Triton row kernels; `ops/chunked/row_ops.py` defines what they compute."""

from typing import Any, TypeVar

import torch

from wavalign_fast.ops.chunked.interface import PITCH_ALIGN, RowChunk, RowGrads, RowStats
from wavalign_fast.ops.chunked.row_ops import operand_view
from wavalign_fast.ops.token_math import TokenTable
from wavalign_fast.ops.triton.configs import FP_FUSION, row_config
from wavalign_fast.ops.triton.kernels.row_ops import (
    hybrid_rows_kernel,
    row_gradient_kernel,
    row_stats_kernel,
)
from wavalign_fast.ops.triton.launch import on_device

Columns = TypeVar("Columns", RowStats, RowGrads, TokenTable)


def row_stats(chunk: RowChunk) -> RowStats:
    """See ``chunked.row_ops.row_stats``.

    Args:
        chunk: float32, bfloat16 or float16 logits. The row stride is a multiple of 64 elements,
            and the first row starts on a 16-byte boundary. The gap between rows is not accessed.

    Raises:
        ValueError: a tensor of the chunk has another layout, shape or dtype.
    """
    chunk = _checked(chunk)
    stats = _empty_stats(chunk.logits)
    _launch(row_stats_kernel, chunk, **stats._asdict())
    return stats


def row_gradient_(
    chunk: RowChunk, stats: RowStats, grads: RowGrads, *, out_dtype: torch.dtype
) -> torch.Tensor:
    """See ``chunked.row_ops.row_gradient_``."""
    chunk = _checked(chunk)
    stats, grads = _columns(stats, chunk.targets), _columns(grads, chunk.targets)
    out = operand_view(chunk.logits, out_dtype)
    _launch(
        row_gradient_kernel,
        chunk,
        out=out,
        **stats._asdict(),
        grad_logp=grads.logp,
        grad_entropy=grads.entropy,
        grad_lse=grads.lse,
    )
    return out


def hybrid_rows_(
    chunk: RowChunk,
    table: TokenTable,
    *,
    clip: tuple[float, float] | None,
    out_dtype: torch.dtype,
) -> tuple[RowStats, torch.Tensor, torch.Tensor]:
    """See ``chunked.row_ops.hybrid_rows_``; this is a single launch."""
    chunk = _checked(chunk)
    table = _columns(table, chunk.targets)
    out = operand_view(chunk.logits, out_dtype)
    stats = _empty_stats(chunk.logits)
    g = torch.empty_like(stats.logp)
    clip_low, clip_high = clip or (0.0, 0.0)
    _launch(
        hybrid_rows_kernel,
        chunk,
        out=out,
        **table._asdict(),
        **stats._asdict(),
        grad_logp=g,
        clip_low=float(clip_low),
        clip_high=float(clip_high),
        CLIP=clip is not None,
    )
    return stats, g, out


def _launch(kernel: Any, chunk: RowChunk, **own: Any) -> None:
    """Launches a kernel with one program a row. ``own`` are its arguments beside the chunk's."""
    rows, vocab = chunk.logits.shape
    if rows == 0:
        return
    config = row_config(vocab)
    with on_device(chunk.logits):
        kernel[(rows,)](
            logits=chunk.logits,
            targets=chunk.targets,
            bias=chunk.bias,
            vocab=vocab,
            # Rows are a multiple of 16 bytes apart, which the unit tells the compiler.
            pitch_64=chunk.logits.stride(0) // PITCH_ALIGN,
            scale=chunk.scale,
            ignore_index=chunk.ignore_index,
            **own,
            BLOCK=config.block,
            num_warps=config.warps,
            enable_fp_fusion=FP_FUSION,
        )


def _empty_stats(logits: torch.Tensor) -> RowStats:
    size = len(logits)
    return RowStats(*(logits.new_empty(size, dtype=torch.float32) for _ in RowStats._fields))


def _columns(table: Columns, targets: torch.Tensor) -> Columns:
    """The table with contiguous columns; those from autograd may be expanded scalars."""
    contiguous = {}
    for name, column in table._asdict().items():
        if column is None:
            continue
        if column.shape != targets.shape or column.dtype != torch.float32:
            raise ValueError(
                f"{name}: got {column.dtype} {tuple(column.shape)}, want torch.float32 "
                f"{tuple(targets.shape)}"
            )
        contiguous[name] = column.contiguous()
    return table._replace(**contiguous)


def _checked(chunk: RowChunk) -> RowChunk:
    """The chunk with contiguous targets and bias, after the checks that ``row_stats`` documents."""
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
