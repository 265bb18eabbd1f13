"""Compiles csrc/cuda with nvcc for every architecture and reads what ptxas reports."""

import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests import nvcc
from tools.build_once import build_once

BUDGETS = Path(__file__).parent / "budgets.txt"
CSRC = Path(__file__).parents[4] / "csrc"
SOURCES = sorted(path.stem for path in (CSRC / "cuda").glob("*.cu"))
ARCHS = ("80", "90a", "100a", "120")
UNAVAILABLE = nvcc.UNAVAILABLE or (None if shutil.which("c++filt") else "needs c++filt")


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One kernel of one architecture."""

    name: str
    registers: int
    stack: int
    spilled: int
    shared: int
    """Static shared memory in bytes."""


def cubin(folder: Path, source: str, arch: str) -> Path:
    """The file that ``kernels_of`` writes the code to."""
    return folder / f"{source}.{arch}.cubin"


def kernels_of(folder: Path, source: str, arch: str) -> list[Kernel]:
    """The kernels of one source, compiled for one architecture.

    Raises:
        BuildFailed: it does not compile without warnings.
    """
    command = [
        nvcc.NVCC,
        "-cubin",
        f"-arch=sm_{arch}",
        "-O3",
        "-std=c++17",
        "-DNDEBUG",
        f"-I{CSRC}",
    ]
    command += ["-Werror", "all-warnings", "-Xptxas", "-v", str(CSRC / "cuda" / f"{source}.cu")]
    return _kernels(build_once(cubin(folder, source, arch), command))


def compile_all(folder: Path) -> dict[str, list[Kernel]]:
    """All kernels by architecture."""
    with ThreadPoolExecutor(2) as pool:
        wanted = [(source, arch) for arch in ARCHS for source in SOURCES]
        found = list(pool.map(lambda one: kernels_of(folder, *one), wanted))
    by_arch: dict[str, list[Kernel]] = {arch: [] for arch in ARCHS}
    for (_, arch), kernels in zip(wanted, found, strict=True):
        by_arch[arch] += kernels
    return {arch: sorted(some, key=lambda kernel: kernel.name) for arch, some in by_arch.items()}


def _kernels(messages: str) -> list[Kernel]:
    kernels = []
    for part in re.split(r"Compiling entry function '", messages)[1:]:
        stack, stores, loads = map(
            int,
            re.search(
                r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part
            ).groups(),  # type: ignore[union-attr]
        )
        registers = re.search(r"Used (\d+) registers", part)
        shared = re.search(r"(\d+) bytes smem", part)
        assert registers is not None
        kernels.append(
            Kernel(
                name=demangled(part.partition("'")[0]),
                registers=int(registers[1]),
                stack=stack,
                spilled=stores + loads,
                shared=int(shared[1]) if shared else 0,
            )
        )
    return kernels


def demangled(symbol: str) -> str:
    """``kernel<types>`` of a symbol."""
    done = subprocess.run(["c++filt", symbol], capture_output=True, text=True, check=True)
    found = re.search(r"(\w+)_kernel(<[^(]*>)?", done.stdout)
    assert found is not None, symbol
    short = {"__nv_bfloat16": "bf16", "__half": "fp16", "float": "fp32", "unsigned ": "u"}
    name = found[1] + (found[2] or "")
    for long, replacement in short.items():
        name = name.replace(long, replacement)
    return name


def budgets(kernels: dict[str, list[Kernel]]) -> str:
    """Registers by kernel and architecture, and static shared memory, as aligned text."""
    names = [kernel.name for kernel in kernels[ARCHS[0]]]
    width = max(map(len, names))
    lines = [f"nvcc {nvcc.RELEASE}: registers of a thread, static shared memory in bytes", ""]
    lines += [f"{'kernel':{width}}  shared" + "".join(f"{'sm_' + arch:>9}" for arch in ARCHS)]
    for row, name in enumerate(names):
        shared = max(kernels[arch][row].shared for arch in ARCHS)
        registers = "".join(f"{kernels[arch][row].registers:9}" for arch in ARCHS)
        lines.append(f"{name:{width}}  {shared:6}{registers}")
    return "\n".join(lines) + "\n"
