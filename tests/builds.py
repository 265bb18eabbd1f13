"""Where a test session keeps what it compiles."""

import os
from pathlib import Path

import pytest


def session_folder(factory: pytest.TempPathFactory, name: str) -> Path:
    """A folder that all workers of this session share; it is deleted with the session's files."""
    base = factory.getbasetemp()
    # Each worker has a folder of its own inside the session's.
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
