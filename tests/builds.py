"""Where a test session keeps what it compiles."""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tools.cuda_on_cpu.toolchain import UNAVAILABLE, Toolchain

CSRC = Path(__file__).parents[1] / "csrc"


def session_folder(factory: pytest.TempPathFactory, name: str) -> Path:
    """A folder that all workers of this session share; it is deleted with the session's files."""
    base = factory.getbasetemp()
    # Each worker has a folder of its own inside the session's.
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name


def cuda_programs(
    factory: pytest.TempPathFactory, *, sources: Path, entries: Path
) -> Callable[[str, str], Path]:
    """Finds the program on the CPU of a CUDA source by its name and variant; builds it once.

    Args:
        sources: the folder of the ``.cu`` files.
        entries: the C++ file with the entries of their programs.
    """
    if UNAVAILABLE:
        pytest.skip(UNAVAILABLE)
    toolchain = Toolchain(session_folder(factory, "cuda_on_cpu"), entries=entries, includes=(CSRC,))
    # Even where nothing is to be built, the toolchain asks for a lock for each object file.
    return cache(lambda name, variant: toolchain.program(sources / f"{name}.cu", variant))
