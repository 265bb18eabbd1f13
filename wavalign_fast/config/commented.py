"""A config file with every key of a run: those that are set, and the others as comments."""

import json
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from wavalign_fast.config.layers import (
    group_of,
    merge,
    options_model,
    resolve_config,
    settle_all,
    wanted,
)
from wavalign_fast.config.schema import RunConfig
from wavalign_fast.config.yaml import Tree, dump_yaml
from wavalign_fast.errors import user_input
from wavalign_fast.recipes import load_recipe

WIDTH = 100
HEAD = (
    "Each key stands below its meaning. A key right behind a #, as in #key: value, has the default "
    "that is shown: remove the # to change it."
)


def commented_config(recipe: str, values: Tree) -> str:
    """Returns the text of a config file with every key of a run of ``recipe``.

    Args:
        values: what is set besides the recipe's own settings.

    Raises:
        UserError: there is no such recipe, or it does not take the values.
    """
    with user_input("recipe"):
        defaults, _, factory = load_recipe(recipe)
    given = merge(merge(defaults, {"recipe": recipe}), values)
    resolve_config([given], task=factory)
    task = options_model(factory)
    lines = [*_comment(HEAD, ""), ""]
    lines += _group(RunConfig, settle_all(given, task), "", task)
    return "\n".join(lines).rstrip() + "\n"


def _group(
    model: type[BaseModel], given: Mapping[str, Any], indent: str, task: type[BaseModel]
) -> Iterator[str]:
    """Yields the lines of the keys of a group, of which ``given`` are set."""
    for number, (name, field) in enumerate(model.model_fields.items()):
        if number:
            yield ""
        inner = task if name == "task" and model is RunConfig else group_of(field.annotation)
        text = field.description or ""
        yield from _comment(text.replace("``", "`"), indent)
        if inner is not None:
            below = given.get(name, {})
            yield f"{indent}{name}:" if below else f"{indent}#{name}:"
            yield from _group(inner, below, f"{indent}  ", task)
            continue
        yield from _comment(f"({wanted(field.annotation, field.metadata)})", indent)
        if name in given:
            yield from _indented(_yaml(name, given[name]), indent)
        elif field.default is PydanticUndefined:
            yield f"{indent}#{name}: (must be set)"
        else:
            yield from _indented(_yaml(name, field.default), f"{indent}#")


def _yaml(name: str, value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"{name}: {json.dumps(value, ensure_ascii=False)}"
    return dump_yaml({name: str(value) if isinstance(value, Path) else value})


def _indented(text: str, indent: str) -> Iterator[str]:
    for line in text.rstrip().splitlines():
        yield f"{indent}{line}"


def _comment(text: str, indent: str) -> Iterator[str]:
    yield from textwrap.wrap(
        text,
        WIDTH,
        initial_indent=f"{indent}# ",
        subsequent_indent=f"{indent}# ",
        break_on_hyphens=False,
        break_long_words=False,
    )
