"""The package's Triton launchers on tensors, with their compiled PTX emulated."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from tests.gpu.budgets.triton.compile import Launch, driver_for
from tools.ptx_emulator import (
    Argument,
    Buffer,
    Conditions,
    Counts,
    Geometry,
    GlobalMemory,
    launch,
    parse,
)
from wavalign_fast.ops import triton as backend
from wavalign_fast.ops.chunked.interface import RowChunk, RowGrads, RowStats
from wavalign_fast.ops.token_math import TokenTable

from .mutations import planted


@dataclass(frozen=True)
class EmulatedTriton:
    """Calls launchers of ``wavalign_fast.ops.triton`` with CPU tensors."""

    target: str
    """``sm_80`` or ``sm_90a``."""
    conditions: Conditions = field(default_factory=Conditions)
    alignment: int = 16
    """The alignment of every tensor's memory, which the launchers check."""
    rewrite: Callable[[str], str] = planted
    """Changes the PTX before it runs."""
    counted: list[Counts] = field(default_factory=list)
    """Counts of each launch, oldest first."""
    kernels: list[str] = field(default_factory=list)

    def call(
        self,
        launcher: Callable[..., Any],
        *arguments: Any,
        in_place: tuple[torch.Tensor, ...] = (),
        **options: Any,
    ) -> Any:
        """``launcher(*arguments, **options)``.

        The elements that an argument views are defined. The rest of its memory, and every other
        tensor that a kernel receives, hold nothing until it writes them. Of the arguments, only
        ``in_place`` may be written. Every element of the results must be written.
        """
        storages = _Storages(in_place, self.alignment)
        for tensor in tensors_in((arguments, options)):
            storages.define(tensor)

        def on_launch(launched: Launch) -> None:
            kernel = _parsed(self.rewrite(launched.asm["ptx"]))
            values: list[Argument] = [
                storages.pointer(a.value, a.name) if isinstance(a.value, torch.Tensor) else a.value
                for a in launched.arguments
            ]
            values += [None] * (len(kernel.parameters) - len(values))  # scratch memory
            geometry = Geometry(
                launched.grid, (launched.threads, 1, 1), dynamic_shared=launched.metadata.shared
            )
            counts = launch(kernel, storages.memory, values, geometry, self.conditions)
            storages.write_back()
            self.kernels.append(launched.name)
            self.counted.append(counts)

        with driver_for(self.target, on_launch):
            result = launcher(*arguments, **options)
        for tensor in tensors_in(result):
            storages.require_written(tensor)
        for tensor in in_place:
            storages.require_untouched_around(tensor)
        return result


class TritonRowKernels(EmulatedTriton):
    """The row kernels' interface. Logits are left as they are, results are copies."""

    def row_stats(self, chunk: RowChunk) -> RowStats:
        return self.call(backend.row_stats, chunk)

    def row_gradient_(
        self, chunk: RowChunk, stats: RowStats, grads: RowGrads, *, out_dtype: torch.dtype
    ) -> torch.Tensor:
        return self._in_place(backend.row_gradient_, chunk, stats, grads, out_dtype=out_dtype)

    def hybrid_rows_(
        self,
        chunk: RowChunk,
        table: TokenTable,
        *,
        clip: tuple[float, float] | None,
        out_dtype: torch.dtype,
    ) -> tuple[RowStats, torch.Tensor, torch.Tensor]:
        return self._in_place(backend.hybrid_rows_, chunk, table, clip=clip, out_dtype=out_dtype)

    def _in_place(
        self, launcher: Callable[..., Any], chunk: RowChunk, *rest: Any, **options: Any
    ) -> Any:
        logits = chunk.logits
        whole = logits.untyped_storage().nbytes() // logits.element_size()
        memory = logits.as_strided((whole,), (1,)).clone()
        copy = memory.as_strided(logits.shape, logits.stride())
        chunk = chunk._replace(logits=copy)
        return self.call(launcher, chunk, *rest, in_place=(copy,), **options)


_parsed = functools.cache(parse)


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors_in(tuple(value.values()))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_in(item)


@dataclass
class _Storage:
    content: torch.Tensor
    """uint8, the tensors' own memory."""
    defined: torch.Tensor
    """Bytes that an argument views."""
    read_only: bool
    buffer: Buffer | None = None


class _Storages:
    """The memory of the tensors of one call: one buffer for each storage, however many view it."""

    def __init__(self, in_place: tuple[torch.Tensor, ...], alignment: int) -> None:
        self._alignment = alignment
        self.memory = GlobalMemory()
        self._by_address: dict[int, _Storage] = {}
        self._in_place = {t.untyped_storage().data_ptr() for t in in_place}

    def define(self, tensor: torch.Tensor) -> None:
        storage = self._find(tensor, argument=True)
        storage.defined |= viewed_bytes(tensor)

    def _find(self, tensor: torch.Tensor, *, argument: bool) -> _Storage:
        whole = tensor.untyped_storage()
        address = whole.data_ptr()
        if address not in self._by_address:
            content = torch.empty(0, dtype=torch.uint8).set_(whole)
            defined = torch.zeros(content.numel(), dtype=torch.bool)
            read_only = argument and address not in self._in_place
            self._by_address[address] = _Storage(content, defined, read_only)
        return self._by_address[address]

    def pointer(self, tensor: torch.Tensor, name: str) -> int:
        storage = self._find(tensor, argument=False)
        if storage.buffer is None:
            storage.buffer = self.memory.place(
                name,
                storage.content.numpy(),
                alignment=self._alignment,
                defined=storage.defined.numpy(),
                read_only=storage.read_only,
            )
        return storage.buffer.pointer + int(tensor.storage_offset()) * tensor.element_size()

    def write_back(self) -> None:
        for storage in self._by_address.values():
            if storage.buffer is not None and not storage.read_only:
                storage.content.numpy()[...] = storage.buffer.array

    def require_written(self, tensor: torch.Tensor) -> None:
        missing = self._never_written(tensor) & viewed_bytes(tensor).numpy()
        assert not missing.any(), f"{int(missing.sum())} bytes of a result were not written"

    def require_untouched_around(self, tensor: torch.Tensor) -> None:
        """Checks that nothing was written to the tensor's memory beside the tensor."""
        written = ~self._never_written(tensor) & ~viewed_bytes(tensor).numpy()
        assert not written.any(), f"{int(written.sum())} bytes beside the rows were written"

    def _never_written(self, tensor: torch.Tensor) -> np.ndarray:
        storage = self._find(tensor, argument=False)
        if storage.buffer is None:
            return ~storage.defined.numpy()
        return storage.buffer.never_written


def viewed_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Which bytes of its storage a tensor views."""
    size = tensor.element_size()
    elements = torch.zeros(tensor.untyped_storage().nbytes() // size, dtype=torch.bool)
    elements.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).fill_(True)
    return elements.repeat_interleave(size)
