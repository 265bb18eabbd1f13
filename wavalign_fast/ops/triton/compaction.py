"""Row compaction: the list of live rows, and copies of rows by such a list."""

import torch
import triton

from wavalign_fast.ops.dtypes import KERNEL_DTYPES
from wavalign_fast.ops.triton.configs import COMPACTION
from wavalign_fast.ops.triton.kernels.compaction import (
    count_live_kernel,
    gather_rows_kernel,
    scan_counts_kernel,
    scatter_rows_kernel,
    write_index_kernel,
)
from wavalign_fast.ops.triton.launch import on_device


def compact_rows(live: torch.Tensor, capacity: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Places of the live rows in ascending order, without waiting for the device.

    Args:
        live: [T] bool or uint8, not 0 where a row is live.
        capacity: length of the list.

    Returns:
        ``index`` [capacity] int64, -1 beyond the last live row, and ``count`` [1] int64, how many
        rows are live: more than ``capacity`` if not all of them found room.
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
            )
        scan_counts_kernel[(1,)](
            counts=counts,
            starts=starts,
            count=count,
            blocks=blocks,
            BLOCK=block,
            num_warps=warps,
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
            )
    return index, count


def gather_rows(source: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Rows ``index`` [N] of ``source`` [T, H]; zeros where the index is -1."""
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
            )
    return out


def scatter_rows_(rows: torch.Tensor, index: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Writes ``rows`` [N, H] into rows ``index`` [N] of ``target`` [T, H], in its dtype.

    Nothing is written where the index is -1; an index stands in the list once. Returns ``target``.
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
