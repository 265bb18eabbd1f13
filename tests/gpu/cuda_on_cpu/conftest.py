"""The emulated kernels, built once for all workers of a test session."""

import pytest

from tests.builds import session_folder

from .kernels import Kernels
from .toolchain import UNAVAILABLE, Toolchain


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    if UNAVAILABLE:
        pytest.skip(UNAVAILABLE)
    return Kernels(Toolchain(session_folder(tmp_path_factory, "cuda_on_cpu")).program)
