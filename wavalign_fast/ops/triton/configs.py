"""Tile shapes and options of the Triton kernels. They are fixed rules: nothing is autotuned.

Autotuning may choose differently on two machines or in two runs, and the bits of the results would
change with it. A shape depends on the architecture, the vocabulary, the hidden size, the dtype and
the options of the call. It never depends on the number of rows: the bits of a row must not depend
on its batch. `tests/gpu/budgets/triton` checks the registers, shared memory and instructions of
every choice. None has been timed on a GPU.
"""

from typing import NamedTuple

import torch
import triton

FP_FUSION = True
"""Lets the compiler fuse a product and a sum into one instruction. Every launch passes it: Triton's
default depends on its release and on an environment variable, and the bits of the results would."""


class RowConfig(NamedTuple):
    """Columns that a row kernel reads at a time, and warps of its programs."""

    block: int
    warps: int


class ScorerConfig(NamedTuple):
    """The scorer's GEMM tile (``rows`` x ``ids`` x ``inner``), and the tiles of ids per program."""

    rows: int
    ids: int
    inner: int
    tiles: int
    warps: int
    stages: int
    licm: bool = True
    """Whether invariants may be moved out of the loop over tiles, at the price of registers."""


class MergeConfig(NamedTuple):
    """Rows of a program that merges spans, and the spans that it reads at a time."""

    rows: int
    spans: int
    warps: int


MERGE = MergeConfig(rows=32, spans=32, warps=4)
"""The loads of 32 spans are independent: the 165 spans of 168 072 ids take six round trips."""

COMPACTION = RowConfig(block=2048, warps=4)
"""Each thread makes two 16-byte accesses to a row in bf16, or one to flags."""

SCALE = RowConfig(block=4096, warps=4)
SCALE_PROGRAMS = 512
"""Each thread keeps four 16-byte accesses of bf16 in flight, 4 MiB in the whole grid: more than the
product of latency and bandwidth of an H100 (about 1 us times 3.35 TB/s). By their registers, all
programs fit on 128 multiprocessors at once. More programs would only take longer when the factor is
1."""


def row_config(vocab: int) -> RowConfig:
    """The number of columns that a program reads at a time.

    A thread keeps three running values for each of its columns, in registers. With 16 columns, six
    programs of 128 threads fit on a multiprocessor of 64 Ki registers. Together they have 48 KiB of
    fp32 loads in flight. An H100 needs a third of that to cover a latency of 600 ns (3.35 TB/s over
    132 multiprocessors). So the arithmetic of one program overlaps with the loads of the others,
    and the loops need no pipelining of their own.
    The columns that do not fill a block are read under a mask, element by element. A smaller block
    keeps them few when the vocabulary is small.
    """
    return RowConfig(block=2048, warps=4) if vocab > 4096 else RowConfig(block=1024, warps=4)


def scorer_config(dtype: torch.dtype, hidden_size: int, *, plain: bool) -> ScorerConfig:
    """The scorer's tile; ``plain`` means without bias and softcap. A span is always 1024 ids.

    A larger tile reads less from L2 for each operation: 128 x 256 does 85 FLOP a byte, 128 x 128
    does 64. On sm_90 the larger one just fits: each of its 256 threads takes all 255 registers, and
    under Triton 3.9 some would spill if the compiler moved invariants out of the loop over tiles.
    With a bias or a softcap it spills, and so it does on the other architectures; there the tile is
    128 x 128. Three stages of that take at most 96 KiB of shared memory, two on gfx9 32 of 64 KiB.
    """
    if dtype == torch.float32:  # no tensor cores; a larger tile spills on some architecture
        return ScorerConfig(rows=64, ids=64, inner=16, tiles=16, warps=4, stages=3)
    if hidden_size % 16:  # operands are loaded element by element, through registers
        return ScorerConfig(rows=128, ids=64, inner=32, tiles=16, warps=8, stages=2)
    here = architecture()
    if here == "sm_90" and plain:
        return ScorerConfig(rows=128, ids=256, inner=64, tiles=4, warps=8, stages=3, licm=False)
    stages = 2 if here.startswith("gfx") else 3
    return ScorerConfig(rows=128, ids=128, inner=64, tiles=8, warps=8, stages=stages)


def architecture() -> str:
    """The current device's: ``sm_90``, ``gfx942``, ...; ``cpu`` under Triton's interpreter."""
    if triton.knobs.runtime.interpret:
        return "cpu"
    target = triton.runtime.driver.active.get_current_target()
    return f"sm_{target.arch}" if target.backend == "cuda" else str(target.arch)
