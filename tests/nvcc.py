"""The nvcc that the build takes, for the tests that compile with it."""

import sys
from pathlib import Path

CSRC = Path(__file__).parents[1] / "csrc"
sys.path.insert(0, str(CSRC))

import build_cuda  # noqa: E402

_FOUND = build_cuda.find_nvcc()
NVCC = "nvcc" if _FOUND is None else str(_FOUND)
UNAVAILABLE = "needs nvcc" if _FOUND is None else None
RELEASE = None if _FOUND is None else build_cuda.nvcc_release(_FOUND)
"""Such as "13.0"."""
