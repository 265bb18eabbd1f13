"""The kernels of csrc/cuda on the CPU, built once for all workers of a test session."""

from pathlib import Path

import pytest

from tests.builds import CSRC, cuda_programs

from .kernels import Kernels


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    entries = Path(__file__).with_name("entries.cpp")
    return Kernels(cuda_programs(tmp_path_factory, sources=CSRC / "cuda", entries=entries))
