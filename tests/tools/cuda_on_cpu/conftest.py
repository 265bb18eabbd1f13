"""The wrong kernels on the CPU, built once for all workers of a test session."""

from pathlib import Path

import pytest

from tests.builds import cuda_programs
from tools.cuda_on_cpu.launcher import Launcher

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Launcher:
    entries = HERE / "entries.cpp"
    return Launcher(cuda_programs(tmp_path_factory, sources=HERE, entries=entries))
