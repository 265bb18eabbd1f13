"""Settings for the whole suite."""

import os

import pytest
import torch
from hypothesis import settings

# The same examples in every run of continuous integration; fresh ones at a developer's desk.
settings.register_profile("ci", derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("there is no GPU that this torch sees")
