"""Complete post-training tasks that ship with the package, by name."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

PACKAGES = {"spoken-sums": "spoken_sums"}


def load_recipe(name: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]], Callable[..., Any]]:
    """The recipe's default config, the overlay of each of its arms, and its task's class."""
    import yaml

    directory = Path(__file__).parent / _package(name)
    defaults, arms = (
        yaml.safe_load((directory / file).read_text(encoding="utf-8"))
        for file in ("recipe.yaml", "arms.yaml")
    )
    return defaults, arms, import_module(f"{__name__}.{_package(name)}.task").TASK


def build_recipe(name: str, output_dir: str | Path) -> None:
    """Makes the recipe's shipped files again in ``output_dir``, printing its progress."""
    import_module(f"{__name__}.{_package(name)}.build").build_recipe(output_dir)


def _package(name: str) -> str:
    if name not in PACKAGES:
        raise ValueError(f"{name!r} given, wanted one of {', '.join(PACKAGES)}")
    return PACKAGES[name]
