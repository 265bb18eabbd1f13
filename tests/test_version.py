"""The version that a bug report names."""

from importlib import metadata

import pytest

import wavalign_fast as wf


def test_it_is_the_installed_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: f"9.8 of {name}")
    assert wf.__version__ == "9.8 of wavalign-fast"
    assert "__version__" in dir(wf)


def test_without_an_installation_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert wf.__version__ == "0+unknown"
