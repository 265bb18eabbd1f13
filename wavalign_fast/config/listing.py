"""``wavalign-fast config``: lists recipes, arms and every key with its meaning and default."""

import json
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from wavalign_fast.config.layers import group_of, key_hint, leaves, options_model, wanted
from wavalign_fast.config.schema import RunConfig
from wavalign_fast.errors import UserError, shown, user_input
from wavalign_fast.recipes import PACKAGES, describe_recipe, load_recipe

WIDTH = 80


def list_settings(keys: Sequence[str] = (), *, recipe: str | None = None) -> str:
    """Returns the listing as plain text of at most 80 columns; ``keys`` limits it to those keys."""
    names = list(PACKAGES) if recipe is None else [recipe]
    with user_input("recipe"):
        recipes = {name: load_recipe(name) for name in names}
    defaults = {name: dict(leaves(parts[0])) for name, parts in recipes.items()}
    entries = dict(_entries(RunConfig, "", defaults))
    for name, (_, _, factory) in recipes.items():
        for key, entry in _task_entries(name, factory).items():  # recipes may share a name
            entries[key] = "\n".join(filter(None, [entries.get(key), entry]))
    if keys:
        return "\n".join(text for key in keys for text in _chosen(key, entries))
    head = [line for name, parts in recipes.items() for line in _recipe(name, parts[1])]
    return "\n".join(
        [
            "Recipes: wavalign-fast train --recipe NAME --arm ARM",
            "",
            *head,
            "Keys: key=value on the command line, or nested in a YAML file",
            "",
            *entries.values(),
        ]
    )


def _chosen(key: str, entries: Mapping[str, str]) -> list[str]:
    chosen = [text for name, text in entries.items() if f"{name}.".startswith(f"{key}.")]
    if not chosen:
        raise UserError(f"unknown key {shown(key)}{key_hint(key, entries)}")
    return chosen


def _recipe(name: str, arms: Mapping[str, Any]) -> Iterator[str]:
    yield from _wrapped(f"{name}: {describe_recipe(name)}", 2)
    yield "    arms, and what each changes in the recipe:"
    width = max(map(len, arms)) + 2
    for arm, overlay in arms.items():
        changes = [f"{key}={_value(value)}" for key, value in leaves(overlay)]
        text = " ".join(changes) or "nothing"
        yield from _wrapped(f"{arm.ljust(width)}{text}", 6, hanging=width)
    yield ""


def _entries(
    group: type[BaseModel],
    prefix: str,
    defaults: Mapping[str, Mapping[str, Any]],
    notes: Sequence[str] = (),
) -> Iterator[tuple[str, str]]:
    """Yields the dotted key and the text of every key; a group comes before its keys.

    ``notes`` stand behind every key.
    """
    for name, field in group.model_fields.items():
        key = f"{prefix}{name}"
        if kind := group_of(field.annotation):
            yield (
                key,
                "\n".join([*_wrapped(f"{key}: {_summary(kind)}", 0), ""]),
            )
            yield from _entries(kind, f"{key}.", defaults, notes)
            continue
        others = [
            f"{recipe}: {_value(values[key])}"
            for recipe, values in defaults.items()
            if key in values and key != "recipe" and values[key] != field.default
        ]
        yield key, _entry(key, field, [*notes, *others])


def _summary(group: type[BaseModel]) -> str:
    """Returns the docstring of a group without its list of keys."""
    return " ".join((group.__doc__ or "").partition("\n\n")[0].split())


def _task_entries(recipe: str, factory: Callable[..., Any]) -> dict[str, str]:
    return dict(_entries(options_model(factory), "task.", {}, notes=[recipe]))


def _entry(key: str, field: Any, notes: Sequence[str]) -> str:
    required = field.default is PydanticUndefined
    head = key if required else f"{key} = {_value(field.default)}"
    note = f"  ({', '.join(notes)})" if notes else ""
    lines = [
        *_wrapped(head + note, 2, hanging=2),
        *_wrapped(field.description or "", 6),
        *_wrapped(wanted(field.annotation, field.metadata), 6),
        "",
    ]
    return "\n".join(lines)


def _wrapped(text: str, indent: int, hanging: int = 0) -> list[str]:
    return textwrap.wrap(
        text.replace("``", "`"),
        WIDTH,
        initial_indent=" " * indent,
        subsequent_indent=" " * (indent + hanging),
        break_on_hyphens=False,
    )


def _value(value: Any) -> str:
    if isinstance(value, Path):
        return "(shipped)"
    return value if isinstance(value, str) else json.dumps(value)
