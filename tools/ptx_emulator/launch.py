"""Runs a kernel with its arguments, on a grid, under given conditions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .counts import Counts
from .errors import EmulatorError
from .machine import Machine
from .memory import Buffer, GlobalMemory
from .program import Kernel
from .races import GlobalRaces
from .values import DTYPES

Dim = tuple[int, int, int]
Argument = Buffer | int | float | bytes | None

_LANES_AT_ONCE = 1 << 15


@dataclass(frozen=True)
class Conditions:
    """How a run uses freedoms of the machine that a kernel must not depend on."""

    order: int | None = None
    """Seed of a random order of the warps; ``None``: all together, as far as branches allow."""
    blocks_apart: bool = False
    """With an order: blocks run apart too, one at a time."""
    late_copies: bool = True
    """Asynchronous copies and wgmma happen only when they are waited for; if False, at once. Late
    ones reveal missing waits, early ones reveal buffers that are refilled too early."""
    approximate: int | None = None
    """Seed of errors of approximate functions, as large as the PTX ISA allows; ``None``: exact."""
    races: bool = True
    """Report accesses of one place by two warps that no barrier separates."""


@dataclass(frozen=True)
class Geometry:
    """The shape of a launch."""

    grid: Dim
    block: Dim
    cluster: Dim = (1, 1, 1)
    dynamic_shared: int = 0

    @property
    def blocks(self) -> int:
        return math.prod(self.grid)

    @property
    def threads(self) -> int:
        """In a block."""
        return math.prod(self.block)

    @property
    def warps(self) -> int:
        """In a block."""
        return -(-self.threads // 32)

    @property
    def cluster_blocks(self) -> int:
        return math.prod(self.cluster)


def launch(
    kernel: Kernel,
    memory: GlobalMemory,
    arguments: Sequence[Argument],
    geometry: Geometry,
    conditions: Conditions | None = None,
    *,
    blocks: Sequence[int] | None = None,
    blocks_in_flight: int | None = None,
) -> Counts:
    """Runs the kernel on ``memory`` and returns what it did.

    Args:
        kernel: see ``parse``.
        memory: the buffers; the kernel writes them.
        arguments: one for each parameter: a buffer stands for its pointer, bytes for a structure,
            ``None`` for zero.
        geometry: grid, block and cluster.
        conditions: the machine's freedoms; by default all warps together, copies late.
        blocks: the numbers of the blocks to run; by default all.
        blocks_in_flight: how many run at the same time (a block may wait for another only while
            both are); as many as is fast by default.

    Raises:
        KernelFault: the kernel did something wrong.
        Unsupported: it holds an instruction that the emulator does not know.
    """
    _check(kernel, geometry)
    parameters = _parameter_bytes(kernel, arguments)
    chosen = np.arange(geometry.blocks) if blocks is None else np.asarray(blocks)
    unit = geometry.cluster_blocks
    at_once = blocks_in_flight or max(1, _LANES_AT_ONCE // (32 * geometry.warps))
    at_once = max(unit, at_once // unit * unit)
    conditions = conditions or Conditions()
    columns = geometry.warps * geometry.cluster_blocks
    races = GlobalRaces(kernel, columns) if conditions.races else None
    counts = Counts()
    for start in range(0, len(chosen), at_once):
        part = chosen[start : start + at_once]
        counts += Machine(kernel, geometry, memory, conditions, parameters, part, races).run()
    return counts


def _check(kernel: Kernel, geometry: Geometry) -> None:
    if any(g % c for g, c in zip(geometry.grid, geometry.cluster, strict=True)):
        raise EmulatorError(f"grid {geometry.grid} is not a multiple of {geometry.cluster}")
    if geometry.cluster[1:] != (1, 1):
        raise EmulatorError(f"clusters along x only, got {geometry.cluster}")
    threads = kernel.directives.get("reqntid")
    if threads and math.prod(threads) != geometry.threads:
        raise EmulatorError(f"{kernel.name} wants blocks of {threads}, got {geometry.block}")
    limit = kernel.directives.get("maxntid")
    if limit and geometry.threads > math.prod(limit):
        raise EmulatorError(f"{kernel.name} allows blocks of {limit}, got {geometry.block}")
    cluster = kernel.directives.get("reqnctapercluster")
    if cluster and math.prod(cluster) != geometry.cluster_blocks:
        raise EmulatorError(f"{kernel.name} wants clusters of {cluster}, got {geometry.cluster}")


def _parameter_bytes(kernel: Kernel, arguments: Sequence[Argument]) -> dict[str, np.ndarray]:
    if len(arguments) != len(kernel.parameters):
        wanted = ", ".join(f"{p.name.split('_')[-1]}:{p.kind}" for p in kernel.parameters)
        raise EmulatorError(f"{kernel.name}: got {len(arguments)} arguments, want {wanted}")
    result = {}
    for parameter, argument in zip(kernel.parameters, arguments, strict=True):
        if isinstance(argument, bytes):
            data = np.frombuffer(argument, np.uint8)
        else:
            value = argument.pointer if isinstance(argument, Buffer) else argument or 0
            dtype = np.dtype("u8") if parameter.kind == "bytes" else DTYPES[parameter.kind]
            if isinstance(value, float) and dtype.kind != "f":
                # Compilers declare parameters by width alone: .b32 for a float.
                value = int(np.array(value, f"f{dtype.itemsize}").view(f"u{dtype.itemsize}"))
            if isinstance(value, int) and dtype.kind == "u":
                value &= (1 << 8 * dtype.itemsize) - 1
            data = np.array([value], dtype).view(np.uint8)
        if data.size != parameter.size:
            raise EmulatorError(
                f"{kernel.name}: {parameter.name} has {parameter.size} bytes, got {data.size}"
            )
        # Room for the widest vector load.
        result[parameter.name] = np.concatenate([data, np.zeros(-data.size % 32 + 32, np.uint8)])
    return result
