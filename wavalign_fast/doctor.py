"""``wavalign-fast doctor``: shows the machine, which backends work on it, and why others do not."""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import warnings
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from wavalign_fast import machine
from wavalign_fast.data import host
from wavalign_fast.errors import one_line
from wavalign_fast.ops import cuda
from wavalign_fast.ops.backends import backend_status, choose_backend
from wavalign_fast.ops.extension import EXTENSION
from wavalign_fast.ops.options import LossOptions

PACKAGES = {
    "wavalign-fast": "",
    "torch": "",
    "transformers": "train",
    "safetensors": "train",
    "numpy": "train",
    "pydantic": "train",
    "pyyaml": "train",
    "rich": "train",
    "tensorboard": "train",
    "triton": "",
    "nvidia-ml-py": "",
}
"""Distributions to report, each with the extra of this package that installs it."""

INSTRUCTION_SETS = {
    "AVX2": {"avx2", "fma"},
    "AVX-512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
    "AVX512-BF16": {"avx512_bf16"},
    "AMX-BF16": {"amx_tile", "amx_bf16"},
}
TOOL_LIMIT_S = 20.0
"""A program that takes longer to print its version hangs."""
FLAGS = (
    "WAVALIGN_BACKEND",
    "WAVALIGN_FORCE_CUDA",
    "WAVALIGN_SKIP_CUDA",
    "WAVALIGN_CUDA_ARCHS",
    "WAVALIGN_DEBUG",
)


@dataclass(frozen=True)
class Fact:
    """One line of the page. ``good`` is ``None`` for a fact that is neither good nor bad."""

    name: str
    value: str
    good: bool | None = None


def report() -> dict[str, list[Fact]]:
    """Collects everything the page shows, by section."""
    return {
        "Versions": _versions(),
        "Machine": _machine(),
        "Tools": _tools(),
        "Backends": _backends(),
        "Recipe spoken-sums": _recipe(),
    }


def main() -> int:
    """Prints the page and returns 0: a machine without the kernels is slow, not broken."""
    sections = report()
    try:
        import rich.console
        import rich.table
        import rich.text  # noqa: F401
    except (Exception, SystemExit):  # not installed, or broken in any way
        _print_plain(sections)
    else:
        _print_rich(sections)
    return 0


def _versions() -> list[Fact]:
    facts = [Fact("python", f"{platform.python_version()} ({sys.executable})")]
    for name, extra in PACKAGES.items():
        # Unlike the distribution's version, torch's own always names the CUDA it was built for.
        version = torch.__version__ if name == "torch" else _version(name)
        if version is not None:
            facts.append(Fact(name, version))
        elif extra:
            facts.append(Fact(name, _missing(extra), good=False))
        else:
            facts.append(Fact(name, "not installed"))
    return facts


def _missing(extra: str) -> str:
    return f"not installed; pip install 'wavalign-fast[{extra}]'"


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
    except Exception as error:  # an interrupted pip leaves damaged metadata
        return f"its metadata cannot be read: {type(error).__name__}"


def _machine() -> list[Fact]:
    model, flags = machine.cpu()
    sets = [name for name, needed in INSTRUCTION_SETS.items() if needed <= flags]
    facts = [
        Fact("system", platform.platform(terse=True) + " " + platform.machine()),
        Fact("CPU", model),
        Fact("instruction sets", ", ".join(sets) or "none that the kernels use"),
        Fact("cores for this process", str(machine.usable_cores())),
        Fact("torch threads", str(torch.get_num_threads())),
        Fact("GPU", ", ".join(machine.gpus()) or "none that this torch sees"),
    ]
    return facts + [Fact(flag, os.environ[flag]) for flag in FLAGS if flag in os.environ]


def _tools() -> list[Fact]:
    compiler = _compiler()
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    places = [f"{home}/bin"] if home else [None, "/usr/local/cuda/bin"]
    nvcc = next(filter(None, (shutil.which("nvcc", path=place) for place in places)), None)
    header = Path(sysconfig.get_path("include")) / "Python.h"
    return [
        Fact("C++ compiler", _tool_version(compiler) or f"none (looked for {compiler})"),
        Fact("Python headers", "found" if header.is_file() else f"none (looked for {header})"),
        Fact("ninja", _tool_version("ninja") or "none: kernels build one file at a time"),
        Fact("nvcc", (nvcc and _tool_version(nvcc)) or "none: CUDA kernels cannot be built here"),
    ]


def _compiler() -> str:
    """Returns the compiler that the build would call."""
    command = os.environ.get("CXX") or sysconfig.get_config_var("CXX") or ""
    try:
        return (shlex.split(command) or ["c++"])[0]
    except ValueError:  # an unclosed quote
        return command


def _tool_version(command: str) -> str | None:
    """Returns path and version of a program, or ``None`` if it is missing."""
    path = shutil.which(command)
    if path is None:
        return None
    try:
        done = subprocess.run(
            [path, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TOOL_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{path}: cannot be run: {one_line(error)}"
    lines = done.stdout.decode(errors="replace").strip().splitlines()
    release = [line for line in lines if "release" in line] or lines
    return f"{path}: {release[0]}" if release else path


def _backends() -> list[Fact]:
    facts = []
    for name, reason in backend_status().items():
        if reason is not None:
            # Missing C++ kernels need attention; a missing GPU backend may be intended.
            facts.append(
                Fact(name, f"not available: {reason}", good=False if name == "cpu" else None)
            )
        elif name == "cpu":
            facts.append(Fact(name, f"available ({_build_info()})", good=True))
        else:
            facts.append(Fact(name, "available", good=True))
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    return [*facts, _host(), *_gpu_builds(), *(_automatic(device) for device in devices)]


def _host() -> Fact:
    """Shows whether packing and interleaving are compiled."""
    if isinstance(host.EXTENSION, str):
        return Fact("data in C++", f"{host.EXTENSION}; plain Python serves")
    return Fact("data in C++", f"built with Python {host.EXTENSION['python']}")


def _gpu_builds() -> list[Fact]:
    """Describes what is built for GPUs, even if this machine has none."""
    info = cuda.EXTENSION
    if not isinstance(info, str):
        info = f"built with CUDA {info['cuda']} for {info['archs'].replace(';', ', ')}"
    triton = _version("triton")
    compiled = f"compiled when first used, by triton {triton}" if triton else "no triton installed"
    return [Fact("CUDA kernels", info), Fact("Triton kernels", compiled)]


def _build_info() -> str:
    info = EXTENSION
    if isinstance(info, str):
        return info
    return ", ".join(f"{key} {value}" for key, value in info.items())


def _automatic(device: str) -> Fact:
    """Shows what ``auto`` chooses for float32 tensors there, given ``WAVALIGN_BACKEND``."""
    name = f"auto takes, on the {'CPU' if device == 'cpu' else 'GPU'}"
    with warnings.catch_warnings():
        # The page already has the reason.
        warnings.simplefilter("ignore")
        try:
            return Fact(name, choose_backend(LossOptions(), torch.zeros(1, device=device)))
        except ValueError as error:
            return Fact(name, f"nothing: {error}", good=False)


def _recipe() -> list[Fact]:
    judge = _version("pocketsphinx")
    heard = f"{judge}, judges the speech" if judge else _missing("train")
    flite = shutil.which("flite") or "not found; Debian: apt install flite"
    return [
        Fact("pocketsphinx", heard, good=None if judge else False),
        Fact("flite", f"{flite} (needed only by build-recipe)"),
    ]


def _print_rich(sections: dict[str, list[Fact]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colours = {True: "green", False: "red", None: ""}
    console = Console()
    for title, facts in sections.items():
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 2))
        table.add_column(style="dim", min_width=24)
        table.add_column(overflow="fold")
        for fact in facts:
            table.add_row(fact.name, Text(fact.value, style=colours[fact.good]))
        console.print(Text(title, style="bold"))
        console.print(table)
        console.print()


def _print_plain(sections: dict[str, list[Fact]]) -> None:
    for title, facts in sections.items():
        print(title)
        for fact in facts:
            print(f"  {fact.name:<24}  {fact.value}")
        print()


if __name__ == "__main__":
    sys.exit(main())
