"""Tile shapes, chosen by architecture and shape alone: nothing is timed at run time.

A choice that a timing makes differs between two machines and two starts, and with it the bits of
the results. What a shape may depend on is the architecture, the vocabulary, the hidden size, the
dtype and the options of the call; never the number of rows, or a row's bits would depend on the
batch around it. Registers, shared memory and instructions of every line here are held by
`tests/gpu/budgets/triton`; none of it has been timed on a GPU.
"""

from typing import NamedTuple

import torch
import triton


class RowConfig(NamedTuple):
    """A row program's block of columns, and its warps."""

    block: int
    warps: int


class ScorerConfig(NamedTuple):
    """A tile of the scorer's product, and how many such tiles of ids one program takes."""

    rows: int
    ids: int
    inner: int
    tiles: int
    warps: int
    stages: int


class MergeConfig(NamedTuple):
    """Rows of a merging program, and spans that it reads at a time."""

    rows: int
    spans: int
    warps: int


MERGE = MergeConfig(rows=32, spans=32, warps=4)
"""Its loads are independent within 32 spans: a vocabulary of 168 072 takes six round trips."""

COMPACTION = RowConfig(block=2048, warps=4)
"""Two 16-byte accesses a thread of a row in bf16, one of flags."""

SCALE = RowConfig(block=4096, warps=4)
SCALE_PROGRAMS = 512
"""Every thread has four 16-byte accesses of bf16 on their way, all of them together 4 MiB, more
than latency times bandwidth of an H100; and 128 multiprocessors hold all programs side by side, by
their registers. More programs would only take longer to find out that there is nothing to do."""


def row_config(vocab: int) -> RowConfig:
    """The block in which one program reads a row.

    A lane keeps three running values for each of its columns, so columns a thread cost registers:
    with 16, six programs of 128 threads fit on a multiprocessor of 64 Ki registers. Their 48 KiB
    of loads in flight are three times what latency times bandwidth asks for on an H100, so one
    program's arithmetic hides behind the loads of the others and no loop needs stages of its own.
    What does not fill a block is read under a mask, element by element: a small vocabulary takes
    a small block, which keeps that part small.
    """
    return RowConfig(block=2048, warps=4) if vocab > 4096 else RowConfig(block=1024, warps=4)


def scorer_config(dtype: torch.dtype, hidden_size: int, *, plain: bool) -> ScorerConfig:
    """The scorer's tile; ``plain`` is without bias and softcap. A program's span is 1024 ids.

    A multiprocessor's tensor cores outrun L2 unless each operand that comes from there meets
    enough of the others: on an H100 that takes 128 x 256. The tile takes all 255 registers of its
    256 threads; with a bias or a softcap it spills, and so it does on the other architectures,
    which have 128 x 128. Three stages of that are 96 KiB at most, two on gfx9 32 KiB of 64.
    """
    if dtype == torch.float32:  # no tensor cores; every larger tile spills somewhere
        return ScorerConfig(rows=64, ids=64, inner=16, tiles=16, warps=4, stages=3)
    if hidden_size % 16:  # operands come element by element, through registers
        return ScorerConfig(rows=128, ids=64, inner=32, tiles=16, warps=8, stages=2)
    here = architecture()
    if here == "sm_90" and plain:
        return ScorerConfig(rows=128, ids=256, inner=64, tiles=4, warps=8, stages=3)
    stages = 2 if here.startswith("gfx") else 3
    return ScorerConfig(rows=128, ids=128, inner=64, tiles=8, warps=8, stages=stages)


def architecture() -> str:
    """``sm_90``, ``gfx942``, ... of the current device; ``cpu`` under Triton's interpreter."""
    if triton.knobs.runtime.interpret:
        return "cpu"
    target = triton.runtime.driver.active.get_current_target()
    return f"sm_{target.arch}" if target.backend == "cuda" else str(target.arch)
