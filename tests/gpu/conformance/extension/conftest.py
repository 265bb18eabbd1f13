"""``emulated_cuda``: the module of the CUDA kernels, running them on tensors of the CPU."""

from types import ModuleType

import pytest

from tests.gpu.conformance.extension.compiling import Library, emulated
from wavalign_fast.ops import cuda


@pytest.fixture(scope="session")
def emulated_library() -> Library:
    return emulated()


@pytest.fixture
def emulated_cuda(emulated_library: Library, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(cuda, "OPS", emulated_library.ops)
    monkeypatch.setattr(cuda, "status", lambda device=None: None)
    return cuda
