"""A driver that compiles launched kernels as for a GPU and hands each launch to a function.

It lets the package's own launchers run on CPU tensors: Triton inspects their arguments as it would
for a GPU, compiles for the target, checks the target's limits, and then calls ``on_launch`` instead
of a GPU. Nothing is computed unless that function does it.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import triton
from triton.compiler import CompiledKernel

from .targets import TARGETS, Target

# Compiled code is cached for the session only.
CACHE = tempfile.TemporaryDirectory(prefix="triton-")


@dataclass(frozen=True, kw_only=True)
class Argument:
    """One parameter of the compiled function."""

    name: str
    type: str
    """Triton's name of the type: ``*fp32``, ``*i64``, ``i32``, ``fp32``."""
    value: Any
    """The value passed: a tensor or a number."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A compiled kernel, and what one launch would pass to it."""

    name: str
    grid: tuple[int, int, int]
    arguments: tuple[Argument, ...]
    """In the binary's order. On NVIDIA two more pointers follow, for scratch memory: pass 0."""
    kernel: CompiledKernel

    @property
    def metadata(self) -> Any:
        """Triton's: ``num_warps``, ``num_stages``, ``shared`` (bytes), ``name`` (entry point)."""
        return self.kernel.metadata

    @property
    def asm(self) -> dict[str, Any]:
        """``ttir``, ``ttgir``, ``llir``, and ``ptx`` and ``cubin`` or ``amdgcn`` and ``hsaco``."""
        return self.kernel.asm

    @property
    def threads(self) -> int:
        return self.metadata.num_warps * self.metadata.target.warp_size


class RecordingDriver:
    """The interface that Triton expects of a driver, for one target."""

    def __init__(self, target: Target, on_launch: Callable[[Launch], None]) -> None:
        self.target = target
        self.on_launch = on_launch
        self.utils = self

    def get_current_target(self) -> Any:
        return self.target.gpu

    def get_current_device(self) -> int:
        """Each target is a separate device, because compiled kernels are cached by device."""
        return list(TARGETS).index(self.target.name)

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": self.target.shared_per_program}

    def load_binary(self, *args: Any) -> tuple[int, ...]:
        """Module, function, registers, spills, threads: the launcher uses only the last."""
        return 1, 1, 0, 0, 1024

    def unload_module(self, module: int) -> None:
        pass

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        kernels = source.fn.device_caches[self.get_current_device()][0].values()

        def launch(x: int, y: int, z: int, stream: int, function: int, *rest: Any) -> None:
            # Packed metadata, launch metadata and two hooks come before the kernel's arguments.
            values = rest[4:]
            arguments = tuple(
                Argument(name=name, type=kind, value=value)
                for (name, kind), value in zip(source.signature.items(), values, strict=True)
                if kind != "constexpr"
            )
            compiled = next(kernel for kernel in kernels if kernel.hash == metadata.hash)
            launched = Launch(
                name=source.fn.__name__, grid=(x, y, z), arguments=arguments, kernel=compiled
            )
            # A compiled kernel keeps this function longer than the driver lives.
            triton.runtime.driver.active.on_launch(launched)

        return launch


@contextmanager
def driver_for(target: str, on_launch: Callable[[Launch], None]) -> Iterator[RecordingDriver]:
    """While active, launches compile for ``target`` and end in ``on_launch``."""
    before = triton.runtime.driver._active
    driver = RecordingDriver(TARGETS[target], on_launch)
    triton.runtime.driver.set_active(driver)
    try:
        with triton.knobs.cache.scope():
            triton.knobs.cache.dir = CACHE.name
            yield driver
    finally:
        triton.runtime.driver._active = before


@contextmanager
def recorded(target: str) -> Iterator[list[Launch]]:
    """The launches in this context, compiled for ``target`` and not run."""
    launches: list[Launch] = []
    with driver_for(target, launches.append):
        yield launches
