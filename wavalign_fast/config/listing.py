"""``wavalign-fast config``: lists recipes, arms and every key with its meaning and default."""

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from wavalign_fast.config.layers import group_of, key_hint, leaves, options_model, wanted
from wavalign_fast.config.schema import RunConfig
from wavalign_fast.errors import UserError, shown, user_input
from wavalign_fast.recipes import PACKAGES, describe_recipe, load_recipe

WIDTH = 80


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A key of a configuration, or a group of keys.

    Attributes:
        key: dotted.
        text: its meaning.
        wanted: the values that it takes; "" for a group.
        default: as text; ``None`` for a group, and where it must be set.
        notes: recipes that have the key or another default of it.
    """

    key: str
    text: str
    wanted: str = ""
    default: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def is_group(self) -> bool:
        return not self.wanted


def list_settings(keys: Sequence[str] = (), *, recipe: str | None = None) -> str:
    """Returns the listing as plain text of at most 80 columns; ``keys`` limits it to those keys."""
    names = list(PACKAGES) if recipe is None else [recipe]
    found = settings(names)
    entries = {key: "\n".join(map(_entry, same)) for key, same in found.items()}
    if keys:
        return "\n".join(text for key in keys for text in _chosen(key, entries))
    head = [line for name in names for line in _recipe(name, load_recipe(name)[1])]
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


def settings(recipes: Sequence[str]) -> dict[str, list[Setting]]:
    """Returns the settings of these recipes by key: several where recipes share its name.

    Raises:
        UserError: there is no such recipe.
    """
    with user_input("recipe"):
        loaded = {name: load_recipe(name) for name in recipes}
    defaults = {name: dict(leaves(parts[0])) for name, parts in loaded.items()}
    found = {setting.key: [setting] for setting in _settings(RunConfig, "", defaults)}
    for name, (_, _, factory) in loaded.items():
        for setting in _settings(options_model(factory), "task.", {}, notes=[name]):
            found.setdefault(setting.key, []).append(setting)
    return found


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


def _settings(
    group: type[BaseModel],
    prefix: str,
    defaults: Mapping[str, Mapping[str, Any]],
    notes: Sequence[str] = (),
) -> Iterator[Setting]:
    """Yields every key; a group comes before its keys. ``notes`` belong to every key."""
    for name, field in group.model_fields.items():
        key = f"{prefix}{name}"
        if kind := group_of(field.annotation):
            yield Setting(key=key, text=_summary(kind), notes=tuple(notes))
            yield from _settings(kind, f"{key}.", defaults, notes)
            continue
        others = [
            f"{recipe}: {_value(values[key])}"
            for recipe, values in defaults.items()
            if key in values and key != "recipe" and values[key] != field.default
        ]
        yield Setting(
            key=key,
            text=field.description or "",
            wanted=wanted(field.annotation, field.metadata),
            default=None if field.default is PydanticUndefined else _value(field.default),
            notes=(*notes, *others),
        )


def _summary(group: type[BaseModel]) -> str:
    """Returns the docstring of a group without its list of keys."""
    return " ".join((group.__doc__ or "").partition("\n\n")[0].split())


def _entry(setting: Setting) -> str:
    if setting.is_group:
        return "\n".join([*_wrapped(f"{setting.key}: {setting.text}", 0), ""])
    head = setting.key if setting.default is None else f"{setting.key} = {setting.default}"
    note = f"  ({', '.join(setting.notes)})" if setting.notes else ""
    lines = [
        *_wrapped(head + note, 2, hanging=2),
        *_wrapped(setting.text, 6),
        *_wrapped(setting.wanted, 6),
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
