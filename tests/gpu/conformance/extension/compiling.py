"""Builds the bindings of the CUDA kernels a second time, as shared objects that need no GPU.

Source and flags are those of the installed extension. The ops are registered in another namespace
and for the CPU's dispatch key. Device and stream come from accelerator.cpp. The launch functions do
nothing, or run the kernels on the CPU with tools/cuda_on_cpu.
"""

import ctypes
import functools
import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch.utils.cpp_extension import library_paths

from tests.nvcc import build_cuda
from tools.build_once import build_once
from tools.cuda_on_cpu import toolchain
from wavalign_fast.ops import cuda

HERE = Path(__file__).parent
ROOT = HERE.parents[3]

BUILT = {"CUDA_RELEASE": "none", "CUDA_ARCHS": "none"}
CXX = ["g++", "-O2", "-fPIC", "-fvisibility=hidden", f"-I{ROOT / 'csrc'}", f"-I{HERE}"]
ON_CPU_CXX = [*CXX, *toolchain.FLAGS, *(f"-I{folder}" for folder in toolchain.INCLUDES)]


class Library:
    """A shared object with the ops of a namespace, and its pretended accelerator."""

    def __init__(self, path: Path, namespace: str) -> None:
        torch.ops.load_library(str(path))
        cuda.register_fakes(namespace)
        self.ops: Any = getattr(torch.ops, namespace)
        self._library = ctypes.CDLL(str(path))
        self._library.pretended_events.restype = ctypes.c_char_p
        self._library.pretended_set.argtypes = (ctypes.c_void_p, ctypes.c_int)

    def events(self) -> list[str]:
        """The events since the last call, in order."""
        return self._library.pretended_events().decode().splitlines()

    def set(self, *, stream: int = 0, status: int = 0) -> None:
        """Sets the current stream, and the status of launches that do nothing."""
        self._library.pretended_set(stream, status)

    def pretend(self, *, arch: int = 90, seed: int = 1) -> None:
        """Sets the device that kernels run on, and the order of their threads."""
        self._library.pretended_device(arch, seed)


@functools.cache
def without_kernels() -> Library:
    """A library whose launches are recorded and do nothing."""
    return _load("wavalign_fast_unlaunched", {HERE / "no_kernels.cpp": [*CXX, "-std=c++20"]})


@functools.cache
def emulated() -> Library:
    """A library whose launches run the kernels on the CPU."""
    recorded = [*ON_CPU_CXX, "-include", "recorded_launches.h", "-x", "c++"]
    sources = {path: ON_CPU_CXX for path in toolchain.EMULATOR}
    sources |= {ROOT / name: recorded for name in build_cuda.KERNELS}
    sources[HERE / "emulated_device.cpp"] = ON_CPU_CXX
    return _load("wavalign_fast_emulated", sources)


def _load(namespace: str, sources: Mapping[Path, list[str]]) -> Library:
    """Compiles the bindings and ``sources``, each with its command, unless that is done."""
    bindings = build_cuda.bindings_command(BUILT, debug=False)
    bindings += [f"-DWAVALIGN_NAMESPACE={namespace}", "-DWAVALIGN_DISPATCH_KEY=CPU"]
    commands = {
        ROOT / build_cuda.BINDINGS: bindings,
        HERE / "accelerator.cpp": [*CXX, "-std=c++20"],
        **sources,
    }
    link = ["g++", "-shared", "-Wl,-Bsymbolic", *(f"-L{path}" for path in library_paths())]
    content = hashlib.sha256(repr((torch.__version__, link, sorted(commands.items()))).encode())
    headers = [ROOT / name for name in build_cuda.HEADERS]
    headers += [path for folder in (HERE, toolchain.HERE) for path in folder.rglob("*.h")]
    for path in sorted([*commands, *headers]):
        content.update(path.read_bytes())
    folder = ROOT / "build" / "tests" / f"{namespace}-{content.hexdigest()[:16]}"
    target = folder / "library.so"

    def compile_one(path: Path) -> str:
        made = folder / f"{path.name}.o"
        build_once(made, [*commands[path], "-c", str(path)])
        return str(made)

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, commands))
    build_once(target, [*link, *objects, "-ltorch_cpu", "-lc10"])
    return Library(target, namespace)
