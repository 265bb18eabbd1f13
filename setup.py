"""Builds wavalign_fast._C, the C++ kernels. Everything else about the package is in pyproject.toml.

WAVALIGN_DEBUG=1 builds without optimisation and with debug symbols. WAVALIGN_FORCE_CUDA,
WAVALIGN_SKIP_CUDA and WAVALIGN_CUDA_ARCHS are reserved for the CUDA kernels of a later release.
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

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
# The wheel runs on any x86-64. One source per instruction set, chosen at run time, has its flags;
# the warnings left out are a note about gcc 4.5 and a false alarm in gcc 12's own AVX-512 header.
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-Wno-maybe-uninitialized"]
ISA_FLAGS = {
    "csrc/cpu/isa/row_kernels_default.cpp": ["-Wno-psabi"],
    "csrc/cpu/isa/row_kernels_avx2.cpp": AVX2,
    "csrc/cpu/isa/row_kernels_avx512.cpp": AVX512,
}


def csrc(pattern: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob(pattern))


SOURCES = [source for source in csrc("*.cpp") if source not in ISA_FLAGS]
DEPENDS = [*csrc("*.h"), *ISA_FLAGS]  # what an sdist carries beside SOURCES


def switched_on(variable: str) -> bool:
    return os.environ.get(variable, "0") not in ("", "0")


def cxx() -> list[str]:
    # As setuptools and ninja choose it.
    return shlex.split(os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++")


def say_without_kernels(reason: str) -> None:
    print(
        f"\nwavalign-fast: installing WITHOUT its C++ kernels: {reason}\n"
        "  What is slower: every loss runs on the plain PyTorch backend ('reference'): the same\n"
        "  numbers, several times slower, with the full logits in memory.\n"
        "  What to do: install a C++20 compiler and Python's headers (Debian: apt install g++\n"
        "  python3-dev) and install again. 'wavalign-fast doctor' shows the state.\n",
        file=sys.stderr,
    )


class NoTorch(build_ext):
    """Stands in where torch is absent: metadata and sdist need no torch, compiling does."""

    def run(self) -> None:
        sys.exit(
            "wavalign-fast is compiled against torch, and torch cannot be imported here.\n"
            "Install torch>=2.13 first, then: pip install --no-build-isolation wavalign-fast"
        )


def kernels() -> Extension:
    """The one extension: a plain module whose import registers the torch.library ops."""
    import torch
    from torch.utils.cpp_extension import CppExtension, include_paths

    debug = switched_on("WAVALIGN_DEBUG")
    optimisation = ["-O0", "-g", "-UNDEBUG"] if debug else ["-O3", "-g0", "-DNDEBUG"]
    # A directory named both by -I and by -isystem counts as a system one: our warnings are shown,
    # torch's are not.
    quiet = [flag for path in include_paths() for flag in ("-isystem", path)]
    # With GCC, OpenMP is switched on for the compiler only. The symbols then resolve to the OpenMP
    # library that torch itself has loaded; linking another copy would give the process a second
    # thread pool that torch.set_num_threads does not reach and whose idle threads spin.
    openmp_link = ["-fopenmp"] if "clang" in Path(cxx()[-1]).name else []
    return CppExtension(
        "wavalign_fast._C",
        SOURCES,
        depends=DEPENDS,
        include_dirs=[str(ROOT / "csrc")],
        define_macros=[("WAVALIGN_TORCH_VERSION", f'"{torch.__version__}"')],
        extra_compile_args=["-std=c++20", "-fopenmp", "-Wall", "-Wextra", *optimisation, *quiet],
        extra_link_args=openmp_link,
        py_limited_api=True,  # one binary serves every Python from 3.10
    )


def isa_objects(extension: Extension, build_dir: Path) -> list[str]:
    """Compiles the sources of ISA_FLAGS: torch gives all files of an extension the same flags."""
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


def build_command() -> type[build_ext]:
    from torch.utils.cpp_extension import BuildExtension

    class BuildKernels(BuildExtension):
        """Compiles with ninja where there is one; a failure costs the kernels, not the install."""

        def build_extension(self, ext: Extension) -> None:
            ext.extra_objects = isa_objects(ext, Path(self.build_temp))
            super().build_extension(ext)

        def build_extensions(self) -> None:
            # torch's default is two jobs more than cores, and each wants a gigabyte and more.
            os.environ.setdefault("MAX_JOBS", str(len(os.sched_getaffinity(0))))
            try:
                if shutil.which(cxx()[0]) is None:
                    raise FileNotFoundError(f"no C++ compiler, looked for '{cxx()[0]}'")
                super().build_extensions()
            except Exception as error:  # compiler, linker, ninja and torch each have their own
                say_without_kernels(str(error).splitlines()[0])
                for extension in self.extensions:
                    # Later steps accept the absence of an optional extension's file.
                    extension.optional = True

    return BuildKernels


def extension_arguments() -> dict[str, object]:
    # A build that was told to contain CUDA kernels must not quietly come out without them.
    if switched_on("WAVALIGN_FORCE_CUDA"):
        sys.exit("WAVALIGN_FORCE_CUDA is set, but this release has no CUDA kernels: unset it.")
    try:
        import torch  # noqa: F401
    except ImportError:
        bare = Extension("wavalign_fast._C", SOURCES, depends=DEPENDS)
        return {"ext_modules": [bare], "cmdclass": {"build_ext": NoTorch}}
    return {"ext_modules": [kernels()], "cmdclass": {"build_ext": build_command()}}


setup(options={"bdist_wheel": {"py_limited_api": "cp310"}}, **extension_arguments())
