"""The launch functions of csrc/cuda on tensors, with their PTX emulated."""

from __future__ import annotations

import ctypes
import operator
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

import numpy as np
import torch

from tests.gpu.conformance.cuda_on_cpu.kernels import Kernels
from tools.cuda_on_cpu.cases import Buffers, Result, Shifted, Sparse
from tools.cuda_on_cpu.launcher import LaunchError
from tools.ptx_emulator import Buffer, Conditions, Counts, Geometry, GlobalMemory, Kernel, launch

from .compiled import CompiledSource
from .mutations import planted
from .tensors import as_numpy, from_numpy

RESULTS = {
    "row_stats": ("out.",),
    "row_gradient": (),
    "hybrid_rows": ("out.", "grad_logp"),
    "group_statistics": ("advantages", "sums"),
    "mix": ("rl_weight", "parts"),
    "compact_rows": ("index", "count", "workspace"),
    "gather_rows": ("rows",),
    "scatter_rows": (),
    "scale": (),
}
"""Prefixes of the names of buffers that a launch function only writes: they start undefined."""

IN_PLACE = {"chunk.logits", "target", "gradient"}


@dataclass
class PtxKernels(Kernels):
    """The functions of ``Kernels``, from the code that nvcc compiles."""

    program: Callable[[str, str], Any] = field(default=lambda name, variant: None)
    source: Callable[[str], CompiledSource] = field(kw_only=True)
    conditions: Conditions = field(default_factory=Conditions)
    counted: list[Counts] = field(default_factory=list)
    """Counts of each launch, oldest first."""
    kernels: list[str] = field(default_factory=list)
    """The names of the kernels launched."""
    alignment: int = 16
    """The alignment of every buffer. An allocator gives more, but no contract promises it."""
    rewrite: Callable[[str], str] = planted
    """Changes the PTX before it runs."""
    blocks: tuple[int, ...] | None = None
    """The blocks that run; ``None``: all."""
    grid: tuple[int, int, int] | None = None
    """Replaces the launch function's grid."""
    blocks_in_flight: int | None = None

    def launch(
        self,
        source: str,
        entry: str,
        params: ctypes.Structure,
        buffers: Buffers,
    ) -> Result:
        memory = GlobalMemory()
        placed: dict[str, Buffer] = {}
        for name, value in buffers.items():
            if value is not None:
                placed[name] = self._place(memory, entry, name, value, params)
                _set_pointer(params, name, placed[name].pointer)
        launches = len(self.counted)

        def on_launch(kernel: Kernel, geometry: Geometry, arguments: list[bytes]) -> None:
            self.kernels.append(kernel.name)
            geometry = replace(geometry, grid=self.grid or geometry.grid)
            self.counted.append(
                launch(
                    kernel,
                    memory,
                    arguments,
                    geometry,
                    self.conditions,
                    blocks=self.blocks,
                    blocks_in_flight=self.blocks_in_flight,
                )
            )

        status = self.source(source).call(
            entry,
            params,
            arch=self.device.arch,
            shared_bytes=self.device.shared_bytes,
            on_launch=on_launch,
            on_fill=memory.fill,
            rewrite=self.rewrite,
        )
        if status != 0:
            raise LaunchError(status)
        for name, buffer in placed.items():
            _check_written(entry, name, buffer, params, everything=self.blocks is None)
        result = Result(status, len(self.counted) - launches, params)
        for name, buffer in placed.items():
            value = buffers[name]
            if isinstance(value, Sparse):
                ((offset, tensor),) = value.segments.items()
                result.buffers[name] = {offset: from_numpy(buffer.array, tensor.dtype)}
            elif value is not None:
                tensor = value.values if isinstance(value, Shifted) else value
                result.buffers[name] = from_numpy(buffer.array, tensor.dtype)
        return result

    def _place(
        self,
        memory: GlobalMemory,
        entry: str,
        name: str,
        value: torch.Tensor | Sparse | Shifted,
        params: ctypes.Structure,
    ) -> Buffer:
        before, alignment = 0, self.alignment
        if isinstance(value, Sparse):
            ((before, value),) = value.segments.items()
        elif isinstance(value, Shifted):
            value, alignment = value.values, value.by & -value.by
        array = as_numpy(value)
        written = name.startswith(RESULTS[entry]) if RESULTS[entry] else False
        defined = None
        if written:
            defined = np.zeros(array.shape, bool)
        elif name == "chunk.logits":
            defined = _inside_rows(array.size, params)
        return memory.place(
            name,
            array,
            alignment=alignment,
            before=before,
            defined=defined,
            read_only=not written and name not in IN_PLACE,
        )


def _inside_rows(size: int, params: Any) -> np.ndarray:
    """Which elements of a chunk's storage are logits; the rest is padding."""
    chunk = params.chunk
    return np.arange(size) % chunk.pitch < chunk.vocab


def _set_pointer(params: Any, name: str, pointer: int) -> None:
    *path, last = name.split(".")
    setattr(reduce(getattr, path, params), last, pointer)


def _check_written(
    entry: str, name: str, buffer: Buffer, params: ctypes.Structure, *, everything: bool
) -> None:
    """Checks that every result was written, and no padding."""
    if name == "chunk.logits":
        untouched = buffer.never_written.reshape(-1)
        padding = ~_inside_rows(untouched.size, params)
        assert untouched[padding].all(), "the padding between two rows was written"
    elif everything and RESULTS[entry] and name.startswith(RESULTS[entry]) and name != "workspace":
        missing = np.nonzero(buffer.never_written.reshape(-1))[0]
        assert not missing.size, f"{name}{missing.tolist()} was not written"


def total(counts: list[Counts]) -> Counts:
    return reduce(operator.add, counts, Counts())
