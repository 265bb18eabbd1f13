"""csrc/cuda compiled by nvcc, once for all workers of a test session."""

from collections.abc import Callable

import pytest

from tests.builds import session_folder

from .compiled import UNAVAILABLE, CompiledSource, compiled_source


@pytest.fixture(scope="session")
def cuda_source(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], CompiledSource]:
    """``csrc/cuda/<name>.cu``, compiled."""
    folder = session_folder(tmp_path_factory, "ptx_of_cuda")

    def source(name: str) -> CompiledSource:
        if UNAVAILABLE:
            pytest.skip(UNAVAILABLE)
        return compiled_source(folder, name)

    return source
