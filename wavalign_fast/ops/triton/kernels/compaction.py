"""Compaction of the indices of live rows, and gather and scatter of rows, without a host sync."""

import triton
import triton.language as tl


@triton.jit
def read_flags(live, block, count, BLOCK: tl.constexpr):
    """Positions of a block of flags, and the flags as 0 and 1."""
    place = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return place, (tl.load(live + place, mask=place < count, other=0) != 0).to(tl.int32)


@triton.jit(do_not_specialize=("total",))
def count_live_kernel(live, counts, total, BLOCK: tl.constexpr):
    block = tl.program_id(0)
    _, flags = read_flags(live, block, total, BLOCK)
    tl.store(counts + block, tl.sum(flags, axis=0))


@triton.jit(do_not_specialize=("blocks",))
def scan_counts_kernel(counts, starts, count, blocks, BLOCK: tl.constexpr):
    """Exclusive prefix sum of the blocks' counts. One program is enough: a block has 2048 flags."""
    running = tl.zeros((), tl.int64)
    for first in tl.range(0, blocks, BLOCK):
        block = first + tl.arange(0, BLOCK)
        inside = block < blocks
        here = tl.load(counts + block, mask=inside, other=0).to(tl.int64)
        through = tl.cumsum(here, axis=0)
        tl.store(starts + block, running + through - here, mask=inside)
        running += tl.sum(here, axis=0)
    tl.store(count, running)


@triton.jit(do_not_specialize=("total", "capacity"))
def write_index_kernel(live, starts, count, index, total, capacity, BLOCK: tl.constexpr):
    """Writes the indices of a block's live rows, and -1 to the entries beyond ``count``.

    Indices go to entries below ``count`` and the -1 to the others, so no two programs write one.
    """
    block = tl.program_id(0)
    place, flags = read_flags(live, block, total, BLOCK)
    if block.to(tl.int64) * BLOCK < total:
        slot = tl.load(starts + block) + tl.cumsum(flags, axis=0) - flags
        tl.store(index + slot, place, mask=(flags != 0) & (slot < capacity))
    rest = tl.full((BLOCK,), -1, tl.int64)
    tl.store(index + place, rest, mask=(place >= tl.load(count)) & (place < capacity))


@triton.jit(do_not_specialize=("sources",))
def gather_rows_kernel(source, index, out, sources, columns, stride, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    place = tl.load(index + row)
    valid = (place >= 0) & (place < sources)
    for start in tl.range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < columns
        values = tl.load(source + place * stride + column, mask=inside & valid, other=0.0)
        tl.store(out + row * columns + column, values, mask=inside)


@triton.jit(do_not_specialize=("targets",))
def scatter_rows_kernel(rows, index, target, targets, columns, stride, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    place = tl.load(index + row)
    if (place >= 0) & (place < targets):
        for start in tl.range(0, columns, BLOCK):
            column = start + tl.arange(0, BLOCK)
            inside = column < columns
            values = tl.load(rows + row * columns + column, mask=inside, other=0.0)
            values = values.to(tl.float32).to(target.dtype.element_ty)
            tl.store(target + place * stride + column, values, mask=inside)
