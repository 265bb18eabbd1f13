"""Builds the kernels: wavalign_fast._C in C++ (csrc/build_cpu.py) and, where there is an nvcc,
wavalign_fast._C_cuda (csrc/build_cuda.py). Everything else about the package is in pyproject.toml.
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

BUILDERS = {builder.NAME: builder for builder in (build_cpu, build_cuda)}


class NoTorch(build_ext):
    """Stands in where torch is absent: metadata and sdist need no torch, compiling does."""

    def run(self) -> None:
        sys.exit(
            "wavalign-fast is compiled against torch, and torch cannot be imported here.\n"
            "Install torch>=2.10 first, then: pip install --no-build-isolation wavalign-fast"
        )


def build_command() -> type[build_ext]:
    from torch.utils.cpp_extension import BuildExtension

    class BuildKernels(BuildExtension):
        """Compiles with ninja where there is one; a failure costs the kernels, not the install."""

        def build_extensions(self) -> None:
            # torch's default is two jobs more than cores, and each wants a gigabyte and more.
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
                else:
                    ext.extra_objects = build_cpu.isa_objects(ext, temporary)
                    super().build_extension(ext)
            except Exception as error:  # compiler, linker, ninja and torch each have their own
                self.do_without(ext, str(error))

        def do_without(self, ext: Extension, reason: str) -> None:
            BUILDERS[ext.name].say_without(reason)
            # Later steps accept the absence of an optional extension's file; that of an earlier
            # build must not stand in for it.
            ext.optional = True
            built = self.get_ext_fullpath(ext.name)
            for folder in (Path(built).parent, ROOT / "wavalign_fast"):
                (folder / Path(built).name).unlink(missing_ok=True)

    return BuildKernels


def extension_arguments() -> dict[str, object]:
    # Declared without nvcc too, or the sdist would lack its sources; and first, for what was asked
    # for and is missing should be told before the minute that the C++ kernels take.
    cuda = Extension(
        build_cuda.NAME, [build_cuda.BINDINGS], depends=build_cuda.DEPENDS, py_limited_api=True
    )
    try:
        import torch  # noqa: F401
    except ImportError:
        bare = Extension(build_cpu.NAME, build_cpu.SOURCES, depends=build_cpu.DEPENDS)
        return {"ext_modules": [cuda, bare], "cmdclass": {"build_ext": NoTorch}}
    return {
        "ext_modules": [cuda, build_cpu.extension()],
        "cmdclass": {"build_ext": build_command()},
    }


setup(options={"bdist_wheel": {"py_limited_api": "cp310"}}, **extension_arguments())
