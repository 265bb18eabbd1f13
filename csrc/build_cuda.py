"""Builds wavalign_fast._C_cuda, the CUDA kernels behind torch's stable ABI, for setup.py.

nvcc compiles the kernels, which include no torch header; the C++ compiler compiles the bindings.
The result is linked with a static CUDA runtime, the CPU libraries of torch, and libtorch, which
loads torch's CUDA library if there is one. So one shared object works with every torch from 2.10,
with and without CUDA. The build does not check whether this machine has a GPU.

WAVALIGN_CUDA_ARCHS replaces DEFAULT_ARCHS, in the same format. WAVALIGN_FORCE_CUDA=1 makes it an
error if the kernels cannot be built. WAVALIGN_SKIP_CUDA=1 does not build them.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from build_cpu import ROOT, cxx, files, switched_on

NAME = "wavalign_fast._C_cuda"
BINDINGS = "csrc/cuda/bindings.cpp"
KERNELS = files("cuda", ".cu")
HEADERS = files("cuda", ".cuh", ".h")
DEPENDS = [*KERNELS, *HEADERS, "csrc/build_cuda.py"]  # what an sdist contains besides BINDINGS
# Code for A100, H100, B200 and RTX 50; 80 also runs on 86 and 89. PTX covers later architectures.
DEFAULT_ARCHS = "80;90a;100a;120+PTX"
# The oldest torch whose stable ABI has everything that the bindings use: 2.10.
STABLE_ABI = "((2ULL << 56) | (10ULL << 48))"
PYTHON_ABI = "0x030A0000"


class NoCudaError(Exception):
    """Why the CUDA kernels cannot be built here."""


class Arch(NamedTuple):
    """An architecture such as ``90a``; ``ptx`` adds its PTX to its machine code."""

    code: str
    ptx: bool

    def flag(self) -> str:
        kinds = f"sm_{self.code},compute_{self.code}" if self.ptx else f"sm_{self.code}"
        return f"-gencode=arch=compute_{self.code},code=[{kinds}]"

    def __str__(self) -> str:
        return f"{self.code}+PTX" if self.ptx else self.code


def find_nvcc() -> Path | None:
    """nvcc in CUDA_HOME, if set; else on the PATH, in /usr/local/cuda or in a Python package."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home:
        places = [shutil.which("nvcc", path=f"{home}/bin")]
    else:
        packages = Path(sysconfig.get_path("platlib"), "nvidia").glob("cu*/bin")
        elsewhere = ["/usr/local/cuda/bin", *map(str, sorted(packages, reverse=True))]
        places = [shutil.which("nvcc"), *(shutil.which("nvcc", path=path) for path in elsewhere)]
    return next((Path(place) for place in places if place), None)


def nvcc_release(nvcc: Path) -> str | None:
    """Such as "13.0"; ``None`` where its ``--version`` names none."""
    release = re.search(r"release ([\d.]+)", run([str(nvcc), "--version"]))
    return release[1] if release else None


def architectures(known: set[str]) -> list[Arch]:
    """The architectures to build for; ``known`` are the numbers that this nvcc supports.

    Raises:
        NoCudaError: WAVALIGN_CUDA_ARCHS is malformed or names an architecture that this nvcc lacks.
    """
    asked = os.environ.get("WAVALIGN_CUDA_ARCHS", "")
    chosen, unknown = [], []
    for word in re.split(r"[;,\s]+", (asked or DEFAULT_ARCHS).strip(";, ")):
        match = re.fullmatch(r"(\d+)\.?(\d)([af]?)(\+PTX)?", word)
        if match is None or (match[3] and match[4]):
            raise NoCudaError(
                f"WAVALIGN_CUDA_ARCHS: got {word!r} in {asked!r}, want a list like "
                f"{DEFAULT_ARCHS!r}; PTX of an architecture with a letter runs on no other one"
            )
        number = match[1] + match[2]
        if number in known:
            chosen.append(Arch(number + match[3], bool(match[4])))
        elif asked:
            raise NoCudaError(
                f"WAVALIGN_CUDA_ARCHS: got {word!r}, but this nvcc supports only "
                f"{sorted(known, key=int)}"
            )
        else:
            unknown.append(word)
    if not chosen:
        raise NoCudaError(
            f"this nvcc supports none of {DEFAULT_ARCHS}, only {sorted(known, key=int)}"
        )
    if unknown:
        print(f"wavalign-fast: this nvcc is too old for {', '.join(unknown)}", file=sys.stderr)
    return chosen


def build(target: Path, build_dir: Path) -> None:
    """Compiles and links the extension into ``target``, MAX_JOBS commands at a time.

    Raises:
        NoCudaError: nvcc was not found, or a command failed.
    """
    if switched_on("WAVALIGN_SKIP_CUDA"):
        raise NoCudaError("WAVALIGN_SKIP_CUDA is set")
    jobs, debug = int(os.environ["MAX_JOBS"]), switched_on("WAVALIGN_DEBUG")
    nvcc = find_nvcc()
    if nvcc is None:
        raise NoCudaError("no nvcc in CUDA_HOME, on the PATH or in /usr/local/cuda")
    known = set(re.findall(r"sm_(\d+)", run([str(nvcc), "--list-gpu-code"])))
    archs = architectures(known)
    built = {
        "CUDA_RELEASE": nvcc_release(nvcc) or "?",
        "CUDA_ARCHS": ";".join(map(str, archs)),
    }
    # With more jobs than files, nvcc compiles the architectures of a file in parallel.
    threads = max(1, jobs // (len(KERNELS) + 1))
    to_object = nvcc_command(nvcc, archs, threads=threads, debug=debug)
    commands = {BINDINGS: bindings_command(built, debug=debug)} | dict.fromkeys(KERNELS, to_object)
    build_dir.mkdir(parents=True, exist_ok=True)

    def compile_one(source: str) -> str:
        item = str((build_dir / Path(source).name).with_suffix(".o").resolve())
        run([*commands[source], "-c", source, "-o", item])
        return item

    with ThreadPoolExecutor(jobs) as pool:
        link(target, list(pool.map(compile_one, commands)), nvcc)


def with_host_compiler(nvcc: Path) -> list[str]:
    # The compiler alone, without a launcher such as ccache and without flags.
    host = [word for word in cxx() if not word.startswith("-")][-1]
    return [str(nvcc), f"-ccbin={host}"]


def nvcc_command(nvcc: Path, archs: Sequence[Arch], *, threads: int, debug: bool) -> list[str]:
    optimisation = ["-O0", "-g", "-G"] if debug else ["-O3", "-DNDEBUG"]
    flags = ["-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra", f"--threads={threads}"]
    target = ["-std=c++17", f"-I{ROOT / 'csrc'}", *(arch.flag() for arch in archs)]
    return [*with_host_compiler(nvcc), *optimisation, *flags, *target]


def bindings_command(built: dict[str, str], *, debug: bool) -> list[str]:
    from torch.utils.cpp_extension import include_paths

    optimisation = ["-O0", "-g"] if debug else ["-O2", "-DNDEBUG"]
    flags = ["-std=c++20", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
    system = [*include_paths(), sysconfig.get_path("include")]
    macros = {"Py_LIMITED_API": PYTHON_ABI, "TORCH_TARGET_VERSION": STABLE_ABI}
    macros |= {f"WAVALIGN_{name}": f'"{value}"' for name, value in built.items()}
    defined = [f"-D{name}={value}" for name, value in macros.items()]
    quiet = [flag for path in system for flag in ("-isystem", path)]
    return [*cxx(), f"-I{ROOT / 'csrc'}", *flags, *optimisation, *defined, *quiet]


def link(target: Path, objects: Sequence[str], nvcc: Path) -> None:
    from torch.utils.cpp_extension import library_paths

    toolkit = nvcc.resolve().parents[1]
    # In Python packages, the libraries of the toolkit lie where nvcc does not search.
    folders = [*library_paths(), str(toolkit / "lib"), str(toolkit / "lib64")]
    target.parent.mkdir(parents=True, exist_ok=True)
    run(
        [
            *with_host_compiler(nvcc),
            "-shared",
            "--no-device-link",
            "-cudart=static",
            # Hide the symbols of the static runtime from other copies in the process.
            "-Xlinker=--exclude-libs,ALL",
            "-o",
            str(target),
            *objects,
            *(f"-L{folder}" for folder in folders if Path(folder).is_dir()),
            "-ltorch_cpu",
            "-lc10",
            "-Xlinker=--no-as-needed",
            "-ltorch",
        ]
    )


def run(command: Sequence[str]) -> str:
    """Runs a command and returns its standard output.

    Raises:
        NoCudaError: the command failed; with the end of its output.
    """
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        output = "\n".join((done.stdout + done.stderr).strip().splitlines()[-20:])
        raise NoCudaError(f"exit code {done.returncode} of {shlex.join(command)}\n{output}")
    return done.stdout


def say_without(reason: str) -> None:
    """Reports that the package is installed without the CUDA kernels.

    Raises:
        SystemExit: WAVALIGN_FORCE_CUDA is set.
    """
    if switched_on("WAVALIGN_FORCE_CUDA"):
        sys.exit(f"WAVALIGN_FORCE_CUDA is set, but the CUDA kernels cannot be built: {reason}")
    print(
        f"\nwavalign-fast: installing WITHOUT its CUDA kernels: {reason}\n"
        "  Effect: NVIDIA GPUs use Triton kernels or plain PyTorch instead. Machines without an\n"
        "  NVIDIA GPU lose nothing.\n"
        "  Fix: install nvcc, then install again. WAVALIGN_FORCE_CUDA=1 makes this an error.\n"
        "  'wavalign-fast doctor' shows which kernels work.\n",
        file=sys.stderr,
    )
