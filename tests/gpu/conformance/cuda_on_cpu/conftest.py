"""The kernels of csrc/cuda on the CPU, built once for all workers of a test session."""

from pathlib import Path

import pytest

from tests.builds import session_folder
from tools.cuda_on_cpu.toolchain import UNAVAILABLE, Toolchain

from .kernels import Kernels

HERE = Path(__file__).parent
CSRC = HERE.parents[3] / "csrc"


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    if UNAVAILABLE:
        pytest.skip(UNAVAILABLE)
    folder = session_folder(tmp_path_factory, "cuda_on_cpu")
    toolchain = Toolchain(folder, entries=HERE / "entries.cpp", includes=(CSRC,))
    return Kernels(lambda name, variant: toolchain.program(CSRC / "cuda" / f"{name}.cu", variant))
