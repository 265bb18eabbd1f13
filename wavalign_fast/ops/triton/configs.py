"""Tile shapes, chosen by architecture and shape alone: nothing is timed at run time.

A choice that a timing makes differs between two machines and two starts, and with it the bits of
the results. What a shape may depend on is the architecture, the vocabulary, the hidden size and
the dtypes; never the number of rows, or a row's bits would depend on the batch around it.
"""

from typing import NamedTuple


class RowConfig(NamedTuple):
    """A row program's block of columns, and its warps."""

    block: int
    warps: int


def row_config(vocab: int) -> RowConfig:
    """The block in which one program reads a row.

    A lane keeps three running values for each of its columns, so columns a thread cost registers:
    with 16, six programs of 128 threads fit on a multiprocessor of 64 Ki registers. Their 48 KiB
    of loads in flight are three times what latency times bandwidth asks for on an H100, so one
    program's arithmetic hides behind the loads of the others and no loop needs stages of its own.
    What does not fill a block is read under a mask, element by element: a small vocabulary takes
    a small block, which keeps that part small.
    """
    return RowConfig(block=2048, warps=4) if vocab > 4096 else RowConfig(block=512, warps=4)
