"""Post-training tasks that ship with the package, by name."""

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from wavalign_fast.errors import did_you_mean, shown

PACKAGES = {
    file.parent.name.replace("_", "-"): file.parent.name
    for file in sorted(Path(__file__).parent.glob("*/recipe.yaml"))
}
"""The package of each recipe by the recipe's name: every folder here with a ``recipe.yaml``."""


class TaskFactory:
    """Makes a recipe's task. Its signature is known before the task's imports are.

    The signature has the options of the task. ``from_run`` maps further arguments to the keys of
    the run's configuration that they are taken from, such as ``model.path``.
    """

    def __init__(self, package: str) -> None:
        self._package = package
        options = import_module(f"{package}.options")
        self.__signature__ = inspect.signature(options.Options, eval_str=True)
        self.from_run: Mapping[str, str] = getattr(options, "FROM_RUN", {})

    def __call__(self, **options: Any) -> Any:
        """Makes the task with these options."""
        return import_module(f"{self._package}.task").TASK(**options)


def load_recipe(name: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]], Callable[..., Any]]:
    """Returns the recipe's default config, the overlay of each arm, and the factory of its task.

    Imports neither torch nor the recipe's code; calling the factory does.

    Raises:
        ValueError: there is no recipe of this name.
    """
    import yaml

    directory = Path(__file__).parent / _package(name)
    defaults, arms = (
        yaml.safe_load((directory / file).read_text(encoding="utf-8"))
        for file in ("recipe.yaml", "arms.yaml")
    )
    return defaults, arms, TaskFactory(f"{__name__}.{_package(name)}")


def describe_recipe(name: str) -> str:
    """Returns a description of the recipe on one line."""
    return str(import_module(f"{__name__}.{_package(name)}").__doc__).strip()


def build_recipe(name: str, output_dir: str | Path) -> None:
    """Builds the files that ship with the recipe in ``output_dir`` and prints the progress."""
    module = f"{__name__}.{_package(name)}.build"
    if find_spec(module) is None:
        raise ValueError(f"recipe {name} ships no files that could be built")
    import_module(module).build_recipe(output_dir)


def _package(name: str) -> str:
    if name not in PACKAGES:
        known, hint = ", ".join(PACKAGES), did_you_mean(name, PACKAGES)
        raise ValueError(f"{shown(name)} given, wanted one of {known}{hint}")
    return PACKAGES[name]
