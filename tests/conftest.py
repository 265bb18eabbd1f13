"""Settings for the whole suite."""

import builtins
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import settings

# CI uses the same examples in every run; developers get new ones.
settings.register_profile("ci", derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("there is no GPU that this torch sees")


@pytest.fixture
def failing_import(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Any], None]:
    """Makes the import of a package and of its modules raise the given error."""

    def fail(package: str, error: Any) -> None:
        real_import = builtins.__import__

        def broken(name: str, *args: Any, **options: Any) -> Any:
            if name == package or name.startswith(f"{package}."):
                raise error
            return real_import(name, *args, **options)

        monkeypatch.setattr(builtins, "__import__", broken)

    return fail
