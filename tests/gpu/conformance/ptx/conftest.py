"""csrc/cuda compiled by nvcc, once for all workers of a test session."""

from collections.abc import Callable
from functools import cache

import pytest

from tests.builds import session_folder
from tests.nvcc import UNAVAILABLE

from .compiled import CompiledSource, compiled_source


@pytest.fixture(scope="session")
def cuda_source(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], CompiledSource]:
    """``csrc/cuda/<name>.cu``, compiled."""
    folder = session_folder(tmp_path_factory, "ptx_of_cuda")

    @cache
    def source(name: str) -> CompiledSource:
        if UNAVAILABLE:
            pytest.skip(UNAVAILABLE)
        return compiled_source(folder, name)

    return source
