"""Builds the C++ kernels (csrc/build_cpu.py), functions on plain numbers (csrc/build_host.py) and,
if there is an nvcc, the CUDA kernels (csrc/build_cuda.py). The rest is in pyproject.toml.
"""

import os
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
sys.path.insert(0, str(ROOT / "csrc"))

import build_cpu  # noqa: E402
import build_cuda  # noqa: E402
import build_host  # noqa: E402

BUILDERS = {builder.NAME: builder for builder in (build_cpu, build_cuda, build_host)}


class NoTorch(build_ext):
    """Replaces build_ext without torch: metadata and sdist do not need it, compiling does."""

    def run(self) -> None:
        sys.exit(
            "wavalign-fast is compiled against torch, which cannot be imported here.\n"
            "Install torch>=2.10 first, then: pip install --no-build-isolation wavalign-fast"
        )


def build_command() -> type[build_ext]:
    from torch.utils.cpp_extension import BuildExtension

    class BuildKernels(BuildExtension):
        """Compiles the kernels; if that fails, the package is installed without them."""

        def build_extensions(self) -> None:
            # torch starts two more jobs than there are cores, each of which needs over a gigabyte.
            os.environ.setdefault("MAX_JOBS", str(len(os.sched_getaffinity(0))))
            reason = build_cpu.missing_compiler()
            if reason is None:
                super().build_extensions()
            else:
                for extension in self.extensions:
                    self.do_without(extension, reason)

        def build_extension(self, ext: Extension) -> None:
            temporary = Path(self.build_temp)
            try:
                if ext.name == build_cuda.NAME:
                    build_cuda.build(Path(self.get_ext_fullpath(ext.name)), temporary)
                    return
                if ext.name == build_cpu.NAME:
                    ext.extra_objects = build_cpu.isa_objects(ext, temporary)
                super().build_extension(ext)
            except Exception as error:  # compiler, linker, ninja and torch raise different types
                self.do_without(ext, str(error))

        def do_without(self, ext: Extension, reason: str) -> None:
            BUILDERS[ext.name].say_without(reason)
            # Later steps accept that the file of an optional extension is missing. Delete the file
            # of an earlier build, or they would install it.
            ext.optional = True
            built = self.get_ext_fullpath(ext.name)
            for folder in (Path(built).parent, ROOT / "wavalign_fast"):
                (folder / Path(built).name).unlink(missing_ok=True)

    return BuildKernels


def extension_arguments() -> dict[str, object]:
    # Always declared, so that the sdist contains its sources. It comes first, so that a missing
    # nvcc is reported before the C++ kernels take a minute to compile.
    cuda = Extension(
        build_cuda.NAME, [build_cuda.BINDINGS], depends=build_cuda.DEPENDS, py_limited_api=True
    )
    try:
        import torch  # noqa: F401
    except ImportError:
        bare = [
            Extension(builder.NAME, builder.SOURCES, depends=builder.DEPENDS)
            for builder in (build_host, build_cpu)
        ]
        return {"ext_modules": [cuda, *bare], "cmdclass": {"build_ext": NoTorch}}
    return {
        "ext_modules": [cuda, build_host.extension(), build_cpu.extension()],
        "cmdclass": {"build_ext": build_command()},
    }


setup(options={"bdist_wheel": {"py_limited_api": "cp310"}}, **extension_arguments())
