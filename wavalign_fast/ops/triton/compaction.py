"""Row compaction: the list of live rows, and gather and scatter of rows by such a list."""

import torch
import triton

from wavalign_fast.ops.dtypes import KERNEL_DTYPES
from wavalign_fast.ops.triton.configs import COMPACTION, FP_FUSION
from wavalign_fast.ops.triton.kernels.compaction import (
    count_live_kernel,
    gather_rows_kernel,
    scan_counts_kernel,
    scatter_rows_kernel,
    write_index_kernel,
)
from wavalign_fast.ops.triton.launch import on_device


def compact_rows(live: torch.Tensor, capacity: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of the live rows in ascending order, without a host sync.

    Args:
        live: [T] bool or uint8; nonzero marks a live row.
        capacity: the length of the list.

    Returns:
        ``index`` [capacity] int64, with -1 after the last live row, and ``count`` [1] int64, the
        number of live rows. It exceeds ``capacity`` if the list was too short for all of them.

    Raises:
        ValueError: ``live`` has another shape or dtype, or ``capacity`` is negative.
    """
    if live.dim() != 1 or live.dtype not in (torch.bool, torch.uint8):
        raise ValueError(f"live: got {live.dtype} {tuple(live.shape)}, want [T] bool or uint8")
    if capacity < 0:
        raise ValueError(f"capacity: got {capacity}, want >= 0")
    flags = live.contiguous().view(torch.uint8)
    total = len(flags)
    block, warps = COMPACTION
    blocks = triton.cdiv(total, block)
    counts = flags.new_empty(blocks, dtype=torch.int32)
    starts = flags.new_empty(blocks, dtype=torch.int64)
    index = flags.new_empty(capacity, dtype=torch.int64)
    count = flags.new_empty(1, dtype=torch.int64)
    with on_device(flags):
        if blocks > 0:
            count_live_kernel[(blocks,)](
                live=flags,
                counts=counts,
                total=total,
                BLOCK=block,
                num_warps=warps,
                enable_fp_fusion=FP_FUSION,
            )
        scan_counts_kernel[(1,)](
            counts=counts,
            starts=starts,
            count=count,
            blocks=blocks,
            BLOCK=block,
            num_warps=warps,
            enable_fp_fusion=FP_FUSION,
        )
        programs = max(blocks, triton.cdiv(capacity, block))
        if programs > 0:
            write_index_kernel[(programs,)](
                live=flags,
                starts=starts,
                count=count,
                index=index,
                total=total,
                capacity=capacity,
                BLOCK=block,
                num_warps=warps,
                enable_fp_fusion=FP_FUSION,
            )
    return index, count


def gather_rows(source: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Gathers the rows ``index`` [N] int64 of ``source`` [T, H]; an index of -1 gives zeros."""
    _check(source, index, "source")
    out = source.new_empty((len(index), source.shape[1]))
    if out.numel() > 0:
        block, warps = COMPACTION
        with on_device(source):
            gather_rows_kernel[(len(index),)](
                source=source,
                index=index.contiguous(),
                out=out,
                sources=source.shape[0],
                columns=source.shape[1],
                stride=source.stride(0),
                BLOCK=block,
                num_warps=warps,
                enable_fp_fusion=FP_FUSION,
            )
    return out


def scatter_rows_(rows: torch.Tensor, index: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Scatters ``rows`` [N, H] to the rows ``index`` [N] int64 of ``target`` [T, H], in its dtype.

    Rows with an index of -1 are skipped. An index may occur only once. Returns ``target``.
    """
    _check(target, index, "target")
    if not {rows.dtype, target.dtype} <= {*KERNEL_DTYPES}:
        raise ValueError(f"rows {rows.dtype} into target {target.dtype}: want 16 or 32-bit floats")
    if rows.shape != (len(index), target.shape[1]):
        raise ValueError(f"rows: got {tuple(rows.shape)}, want {(len(index), target.shape[1])}")
    if rows.numel() > 0:
        block, warps = COMPACTION
        with on_device(target):
            scatter_rows_kernel[(len(index),)](
                rows=rows.contiguous(),
                index=index.contiguous(),
                target=target,
                targets=target.shape[0],
                columns=target.shape[1],
                stride=target.stride(0),
                BLOCK=block,
                num_warps=warps,
                enable_fp_fusion=FP_FUSION,
            )
    return target


def _check(table: torch.Tensor, index: torch.Tensor, name: str) -> None:
    if table.dim() != 2 or (table.shape[1] > 1 and table.stride(1) != 1):
        raise ValueError(
            f"{name}: got shape {tuple(table.shape)} of strides {table.stride()}, want [T, H] with "
            "contiguous rows"
        )
    if index.dim() != 1 or index.dtype != torch.int64:
        raise ValueError(f"index: got {index.dtype} {tuple(index.shape)}, want [N] torch.int64")
