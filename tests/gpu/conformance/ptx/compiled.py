"""Compiles csrc/cuda with nvcc: the kernels to PTX, their launch functions to a library."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.nvcc import NVCC
from tools.build_once import build_once
from tools.ptx_emulator import Geometry, Kernel, parse

ROOT = Path(__file__).parents[4]
CSRC = ROOT / "csrc"
RUNTIME = ROOT / "tools" / "ptx_emulator" / "recording_runtime.cpp"
TARGETS = {80: "compute_80", 90: "compute_90a"}
"""The target of the PTX, by the architecture of the device."""


class _Geometry(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_uint * 3) for name in ("grid", "block", "cluster")),
        ("dynamic_shared", ctypes.c_size_t),
    )


_ON_LAUNCH = ctypes.CFUNCTYPE(
    None, ctypes.c_char_p, ctypes.POINTER(_Geometry), ctypes.POINTER(ctypes.c_void_p)
)
_ON_FILL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)

OnLaunch = Callable[[Kernel, Geometry, list[bytes]], None]
OnFill = Callable[[int, int, int], None]


@dataclass(frozen=True)
class CompiledSource:
    """One ``csrc/cuda/<name>.cu``."""

    name: str
    folder: Path

    def ptx(self, arch: int) -> str:
        return (self.folder / f"{self.name}.{TARGETS[arch]}.ptx").read_text(encoding="utf-8")

    def value(self, name: str, argument: int) -> int:
        """``int64_t name(int64_t)``."""
        function = _library(self.folder / f"lib{self.name}.so")[_mangled(name, "l")]
        function.restype = ctypes.c_int64
        return int(function(ctypes.c_int64(argument)))

    def call(
        self,
        entry: str,
        params: ctypes.Structure,
        *,
        arch: int,
        shared_bytes: int,
        on_launch: OnLaunch,
        on_fill: OnFill,
        rewrite: Callable[[str], str],
    ) -> int:
        """Calls a launch function, ``Status entry(const Params&, void* stream)``, on a device of
        this kind and returns its status.

        ``rewrite`` may change the PTX before it is parsed. An exception of ``on_launch`` is raised
        here.
        """
        library = _library(self.folder / f"lib{self.name}.so")
        raised: list[BaseException] = []

        def launched(name: bytes, shape: ctypes.Array, arguments: ctypes.Array) -> None:
            try:
                kernel = _kernel(self, arch, name.decode(), rewrite)
                values = [
                    ctypes.string_at(arguments[i], p.size) for i, p in enumerate(kernel.parameters)
                ]
                on_launch(kernel, _geometry(shape[0]), values)
            except BaseException as error:
                # ctypes swallows the exceptions of a callback.
                raised.append(error)

        callbacks = _ON_LAUNCH(launched), _ON_FILL(on_fill)
        library.recording_describe(arch, shared_bytes, *callbacks)
        structure = "".join(word.capitalize() for word in entry.split("_"))
        function = library[_mangled(entry, f"RKNS0_{len(structure)}{structure}EPv")]
        status = int(function(ctypes.byref(params), None))
        if raised:
            raise raised[0]
        return status


def _mangled(name: str, arguments: str) -> str:
    """The symbol of a function of the namespace ``wavalign::cuda`` in the Itanium ABI."""
    return f"_ZN8wavalign4cuda{len(name)}{name}E{arguments}"


def _geometry(shape: _Geometry) -> Geometry:
    grid, block, cluster = (
        (int(d[0]), int(d[1]), int(d[2])) for d in (shape.grid, shape.block, shape.cluster)
    )
    return Geometry(grid, block, cluster, int(shape.dynamic_shared))


@functools.cache
def _library(path: Path) -> ctypes.CDLL:
    return ctypes.CDLL(str(path))


@functools.cache
def _kernel(source: CompiledSource, arch: int, name: str, rewrite: Callable[[str], str]) -> Kernel:
    return parse(rewrite(source.ptx(arch)), name)


def compiled_source(folder: Path, name: str) -> CompiledSource:
    """Compiles a source once for all workers of a test session, which share the folder."""
    own = folder / name
    own.mkdir(parents=True, exist_ok=True)
    architectures = [f"-gencode=arch={t},code={t}" for t in TARGETS.values()]
    kernels, runtime = own / "kernels.o", folder / "runtime.o"
    command = [NVCC, "-std=c++17", "-O3", f"-I{CSRC}", "-Xcompiler=-fPIC", "-c"]
    # -lineinfo: messages of the emulator name the line of the source. The PTX is kept beside it.
    kept = ["-lineinfo", *architectures, "--keep", "--keep-dir", str(own)]
    build_once(kernels, [*command, *kept, str(CSRC / "cuda" / f"{name}.cu")])
    build_once(runtime, [*command, str(RUNTIME)])
    # Binds to its own runtime, even if the process has loaded the real one.
    link = ["g++", "-shared", "-Wl,-Bsymbolic,--no-undefined", str(kernels), str(runtime)]
    build_once(own / f"lib{name}.so", link)
    return CompiledSource(name, own)
