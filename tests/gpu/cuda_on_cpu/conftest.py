"""The emulated kernels, built once for all workers of a test session."""

import os

import pytest

from .kernels import Kernels
from .toolchain import UNAVAILABLE, Toolchain


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    if UNAVAILABLE:
        pytest.skip(UNAVAILABLE)
    base = tmp_path_factory.getbasetemp()
    # Workers have folders of their own inside the session's.
    session = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    return Kernels(Toolchain(session / "cuda_on_cpu").program)
