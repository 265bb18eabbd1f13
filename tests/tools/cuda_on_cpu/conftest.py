"""The wrong kernels on the CPU, built once for all workers of a test session."""

from pathlib import Path

import pytest

from tests.builds import session_folder
from tools.cuda_on_cpu.launcher import Launcher
from tools.cuda_on_cpu.toolchain import UNAVAILABLE, Toolchain

HERE = Path(__file__).parent
CSRC = HERE.parents[2] / "csrc"


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Launcher:
    if UNAVAILABLE:
        pytest.skip(UNAVAILABLE)
    folder = session_folder(tmp_path_factory, "cuda_on_cpu")
    toolchain = Toolchain(folder, entries=HERE / "entries.cpp", includes=(CSRC,))
    return Launcher(lambda name, variant: toolchain.program(HERE / f"{name}.cu", variant))
