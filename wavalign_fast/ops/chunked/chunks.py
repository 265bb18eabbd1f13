"""What a call over chunks of rows is given, and how its rows are cut into chunks."""

from typing import NamedTuple

import torch

from wavalign_fast.ops.dtypes import statistics_dtype

PRODUCT_ROWS = 256
"""The least rows of one product of logits, and the unit of its height: enough flops a byte of the
head that a GPU is not only waiting for it."""
PITCH_ALIGN = 64


class Head(NamedTuple):
    """The operands of a call: rows [N, H], head [V, H], and how their product becomes z."""

    hidden: torch.Tensor
    weight: torch.Tensor
    targets: torch.Tensor
    bias: torch.Tensor | None
    temperature: float
    ignore_index: int

    @property
    def stats_dtype(self) -> torch.dtype:
        """The type of logits and statistics."""
        return statistics_dtype(self.hidden.dtype)


class Needs(NamedTuple):
    """Which gradients are wanted."""

    hidden: bool
    weight: bool
    bias: bool


class ChunkOptions(NamedTuple):
    """How a call is computed."""

    backend: str
    memory_budget: int
    """Bytes of logits that may exist at once; one product's worth of rows always may."""
    same_bits: bool
    """Whether a row's bits may not depend on the rows beside it."""
    grad_rows: int
    """How many rows may have a gradient, all of those the first: no other is multiplied for it."""


class Chunks(NamedTuple):
    """The rows of a call, a chunk at a time."""

    rows: list[slice]
    buffer_rows: int
    """Rows of the buffer that holds any chunk, its last product filled up."""
    pitch: int
    """Elements between rows of logits."""


def chunks_of(count: int, vocab: int, item_bytes: int, options: ChunkOptions) -> Chunks:
    """Chunks of ``count`` rows of ``vocab`` logits.

    The buffer has one of few heights, at most half more than it needs, or all that the budget
    holds: were it the number of rows, each batch would leave the allocator a block that the next
    one does not fit.
    """
    pitch = (vocab + PITCH_ALIGN - 1) // PITCH_ALIGN * PITCH_ALIGN
    most = max(1, options.memory_budget // (pitch * item_bytes * PRODUCT_ROWS))
    blocks, grad_blocks = (
        -(-rows // PRODUCT_ROWS) for rows in (count, min(count, options.grad_rows))
    )
    rows, first = [], 0
    heights = chunk_heights(blocks, grad_blocks, most)
    for height in heights:
        rows.append(slice(first, min(first + height * PRODUCT_ROWS, count)))
        first = rows[-1].stop
    held = min(most, _coarse(max(heights, default=0)))
    return Chunks(rows, held * PRODUCT_ROWS, pitch)


def _coarse(blocks: int) -> int:
    """The least of 0, 1, 2, 3, 4, 6, 8, 12, 16, ... that is not less."""
    if blocks == 0:
        return 0
    power = 1 << (blocks - 1).bit_length()
    return power if blocks > power * 3 // 4 or power < 4 else power * 3 // 4


def chunk_heights(blocks: int, grad_blocks: int, most: int) -> list[int]:
    """Heights, at most ``most`` each, of as few chunks as hold ``blocks``.

    Chunks are alike: a low one at the end would read all of the head for a few rows. The first
    ``grad_blocks`` blocks, which may have a gradient, lie in as few chunks as they can, for each of
    these adds to the head's gradient.
    """
    if blocks == 0:
        return []
    chunks, leading = -(-blocks // most), -(-grad_blocks // most)
    if leading == 0:
        return _alike(blocks, chunks)
    height = max(-(-blocks // chunks), -(-grad_blocks // leading))
    taken = min(blocks, leading * height)
    return _alike(taken, leading) + _alike(blocks - taken, chunks - leading)


def _alike(blocks: int, chunks: int) -> list[int]:
    chunks = min(blocks, chunks)
    return [blocks // chunks + (i < blocks % chunks) for i in range(chunks)]
