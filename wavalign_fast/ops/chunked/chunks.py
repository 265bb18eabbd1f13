"""The arguments of the chunk loop, and how the rows of a call are cut into chunks."""

from typing import NamedTuple

import torch

from wavalign_fast.ops.chunked.interface import PITCH_ALIGN
from wavalign_fast.ops.dtypes import statistics_dtype
from wavalign_fast.ops.operands import Operands

PRODUCT_ROWS = 256
"""The least height of a GEMM that computes logits. With ``same_bits`` all heights are multiples.

Such a GEMM does 256 flops for each byte that it reads of a 16-bit head. By data sheet (peak rate
over bandwidth) an A100 needs 153 flops a byte to be bound by arithmetic and an H200 206, but a
B200 281 and an H100 295: there such a GEMM is bound by reading the head. A taller one is not, where
it may run (``products.logits_product``).
"""


class Head(NamedTuple):
    """The compacted operands of a call; its logits are ``hidden weight^T / temperature + bias``.

    With a softcap c they are ``c tanh(hidden weight^T / c) / temperature + bias``, or with
    ``bias_inside`` ``c tanh((hidden weight^T + bias) / c) / temperature``.
    """

    hidden: torch.Tensor
    """[N, H]"""
    weight: torch.Tensor
    """[V, H]"""
    targets: torch.Tensor
    """[N] int64"""
    bias: torch.Tensor | None
    """[V]"""
    temperature: float
    ignore_index: int
    softcap: float | None = None
    bias_inside: bool = False

    @property
    def stats_dtype(self) -> torch.dtype:
        """The dtype of logits and statistics."""
        return statistics_dtype(self.hidden.dtype)

    def detached(self) -> "Head":
        """The same values without autograd."""
        return self._replace(
            hidden=self.hidden.detach(),
            weight=self.weight.detach(),
            bias=None if self.bias is None else self.bias.detach(),
        )


def head_of(
    operands: Operands, hidden: torch.Tensor, targets: torch.Tensor, ignore_index: int
) -> Head:
    """The head of a call over these rows [N, H] with their targets [N]."""
    form = operands.form
    return Head(
        hidden,
        operands.weight,
        targets,
        operands.bias,
        form.kernel_temperature,
        ignore_index,
        form.kernel_softcap,
        form.bias_inside,
    )


class Needs(NamedTuple):
    """Which gradients are wanted."""

    hidden: bool
    weight: bool
    bias: bool


class ChunkOptions(NamedTuple):
    """How a call is computed."""

    backend: str
    memory_budget: int
    """Bytes of logits that may exist at once; those of ``PRODUCT_ROWS`` rows always may."""
    same_bits: bool
    """Whether a row must get the same bits whatever the rows beside it."""
    grad_rows: int
    """How many rows may have a gradient. They come first; the backward GEMMs leave out the rest."""


class Chunks(NamedTuple):
    """How the rows of a call are cut into chunks."""

    rows: list[slice]
    buffer_rows: int
    """Height of the buffer that holds any of the chunks, padded to a multiple of
    ``PRODUCT_ROWS``."""
    pitch: int
    """Elements from one row of logits to the next."""


def chunks_of(count: int, vocab: int, item_bytes: int, options: ChunkOptions) -> Chunks:
    """Chunks of ``count`` rows of ``vocab`` logits.

    The buffer's height is one of few values: at most half more than is needed, or all that the
    budget holds. If it followed the number of rows, the allocator would keep a block of another
    size after each batch.
    """
    pitch = pitch_of(vocab)
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


def pitch_of(vocab: int) -> int:
    """Elements from one row of ``vocab`` logits to the next."""
    return (vocab + PITCH_ALIGN - 1) // PITCH_ALIGN * PITCH_ALIGN


def _coarse(blocks: int) -> int:
    """Rounds up to one of 0, 1, 2, 3, 4, 6, 8, 12, 16, ..."""
    if blocks == 0:
        return 0
    power = 1 << (blocks - 1).bit_length()
    return power if blocks > power * 3 // 4 or power < 4 else power * 3 // 4


def chunk_heights(blocks: int, grad_blocks: int, most: int) -> list[int]:
    """Heights of the fewest chunks that hold ``blocks`` blocks, at most ``most`` blocks each.

    The chunks have nearly equal heights: a low last one would read all of the head for a few rows.
    The first ``grad_blocks`` blocks, which may have a gradient, lie in as few chunks as possible,
    since each of these reads and writes the head's gradient.
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
