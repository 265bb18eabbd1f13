"""Builds wavalign_fast._host, functions on plain numbers in C++, for setup.py.

It takes seconds: of torch it needs only the headers of pybind11, which come with torch.
"""

import sys
from pathlib import Path

from build_cpu import ROOT, files, switched_on
from setuptools import Extension

NAME = "wavalign_fast._host"
SOURCES = files("host", ".cpp")
DEPENDS = [*files("host", ".h"), "csrc/build_host.py"]


def extension() -> Extension:
    """The extension module, for this version of Python alone: pybind11 has no stable ABI."""
    import torch

    optimisation = ["-O0", "-g"] if switched_on("WAVALIGN_DEBUG") else ["-O2", "-g0"]
    headers = Path(torch.__file__).parent / "include"
    return Extension(
        NAME,
        SOURCES,
        depends=DEPENDS,
        include_dirs=[str(ROOT / "csrc")],
        # pybind11 wants its symbols hidden. Its warnings are not ours to report.
        extra_compile_args=[
            *("-std=c++17", "-fvisibility=hidden", "-Wall", "-Wextra", *optimisation),
            *("-isystem", str(headers)),
        ],
        language="c++",
    )


def say_without(reason: str) -> None:
    """Reports that the package is installed without these functions."""
    print(
        f"\nwavalign-fast: installing without wavalign_fast._host: {reason.splitlines()[0]}\n"
        "  Effect: packing and interleaving run in plain Python, with the same results.\n",
        file=sys.stderr,
    )
