"""Builds wavalign_fast._C, the C++ kernels, for setup.py.

WAVALIGN_DEBUG=1 compiles without optimisation, with assertions and debug symbols.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension

ROOT = Path(__file__).parents[1]
NAME = "wavalign_fast._C"
# The wheel runs on any x86-64: one source per instruction set is compiled with its flags, and the
# choice is made at run time. The two disabled warnings are a note about gcc 4.5 and a false
# positive in the AVX-512 header of gcc 12.
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-Wno-maybe-uninitialized"]
ISA = {"default": ["-Wno-psabi"], "avx2": AVX2, "avx512": AVX512}
ISA_FLAGS = {f"csrc/cpu/isa/{name}.cpp": flags for name, flags in ISA.items()}


def files(folder: str, *kinds: str) -> list[str]:
    """Files under a folder of csrc/ with a suffix of ``kinds``, relative to the checkout."""
    found = [path for path in (ROOT / "csrc" / folder).rglob("*") if path.suffix in kinds]
    return sorted(str(path.relative_to(ROOT)) for path in found)


SOURCES = ["csrc/library.cpp"]  # includes the other sources, except those of ISA_FLAGS
# What an sdist contains besides SOURCES.
DEPENDS = ["csrc/bindings.cpp", *files("cpu", ".cpp", ".h"), "csrc/build_cpu.py"]


def switched_on(variable: str) -> bool:
    return os.environ.get(variable, "0") not in ("", "0")


def cxx() -> list[str]:
    # The same choice as that of setuptools and ninja.
    return shlex.split(os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++")


def missing_compiler() -> str | None:
    return None if shutil.which(cxx()[0]) else f"no C++ compiler: '{cxx()[0]}' was not found"


def extension() -> Extension:
    """The extension module; importing it registers the torch.library ops."""
    import torch
    from torch.utils.cpp_extension import CppExtension, include_paths

    debug = switched_on("WAVALIGN_DEBUG")
    optimisation = ["-O0", "-g", "-UNDEBUG"] if debug else ["-O3", "-g0", "-DNDEBUG"]
    # A directory in both -I and -isystem counts as a system directory, so the compiler reports our
    # warnings and not those of torch.
    quiet = [flag for path in include_paths() for flag in ("-isystem", path)]
    # With GCC, -fopenmp goes to the compiler only, so that the symbols resolve to the OpenMP
    # library of torch. Another copy would add a second thread pool, which torch.set_num_threads
    # does not control and whose idle threads spin.
    openmp_link = ["-fopenmp"] if "clang" in Path(cxx()[-1]).name else []
    return CppExtension(
        NAME,
        SOURCES,
        depends=DEPENDS,
        include_dirs=[str(ROOT / "csrc")],
        define_macros=[("WAVALIGN_TORCH_VERSION", f'"{torch.__version__}"')],
        extra_compile_args=["-std=c++20", "-fopenmp", "-Wall", "-Wextra", *optimisation, *quiet],
        extra_link_args=openmp_link,
        py_limited_api=True,  # one binary serves every Python from 3.10
    )


def isa_objects(extension: Extension, build_dir: Path) -> list[str]:
    """Compiles the sources of ISA_FLAGS, because torch gives all files of an extension one set."""
    build_dir.mkdir(parents=True, exist_ok=True)
    include = [f"-I{path}" for path in extension.include_dirs]

    def compile_one(source: str) -> str:
        target = str((build_dir / Path(source).stem).with_suffix(".o").resolve())
        isa = ISA_FLAGS[source] if platform.machine() == "x86_64" else []
        flags = ["-fPIC", *include, *extension.extra_compile_args, *isa]
        subprocess.run([*cxx(), *flags, "-c", source, "-o", target], check=True, cwd=ROOT)
        return target

    with ThreadPoolExecutor(max_workers=int(os.environ["MAX_JOBS"])) as pool:
        return list(pool.map(compile_one, ISA_FLAGS))


def say_without(reason: str) -> None:
    """Reports that the package is installed without the C++ kernels."""
    print(
        f"\nwavalign-fast: installing WITHOUT its C++ kernels: {reason.splitlines()[0]}\n"
        "  Effect: all losses run on the plain PyTorch backend ('reference'), which gives the\n"
        "  same results several times slower and keeps the full logits in memory.\n"
        "  Fix: install a C++20 compiler and Python's headers (Debian: apt install g++\n"
        "  python3-dev), then install again. 'wavalign-fast doctor' shows which kernels work.\n",
        file=sys.stderr,
    )
