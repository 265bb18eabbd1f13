"""Tile shapes, chosen by architecture and shape alone: nothing is timed at run time.

A choice that a timing makes differs between two machines and two starts, and with it the bits of
the results. What a shape may depend on is the architecture, the vocabulary, the hidden size and
the dtypes; never the number of rows, or a row's bits would depend on the batch around it.
"""

from typing import NamedTuple

import torch
import triton


class RowConfig(NamedTuple):
    """A row program's block of columns, and its warps."""

    block: int
    warps: int


def row_config(vocab: int) -> RowConfig:
    """The block in which one program reads a row.

    A lane keeps three running values for each of its columns, so columns a thread cost registers:
    16 a thread leave room for two programs of 256 threads on every architecture, 32 KiB of loads
    in flight on each multiprocessor, which is what the memory latency asks for at full bandwidth.
    Rows that end within the first block read all of it under a mask, element by element: a
    smaller block keeps those few.
    """
    return RowConfig(block=4096, warps=8) if vocab > 4096 else RowConfig(block=1024, warps=4)
