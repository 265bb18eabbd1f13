"""Merges the layers of a configuration, validates the result, and reports mistakes on one line.

Later layers win: recipe defaults, the arm's overlay, the user's YAML file, ``key=value`` overrides.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError, create_model
from pydantic.fields import FieldInfo

from wavalign_fast.config.group import Group
from wavalign_fast.config.schema import RunConfig
from wavalign_fast.config.yaml import Source, Tree, dump_yaml, read_config_file, read_override
from wavalign_fast.errors import UserError, did_you_mean, shown

ModelT = TypeVar("ModelT", bound=BaseModel)

UNKNOWN_KEY = "unknown key"
NULLS = {"", "~", "null", "Null", "NULL"}

TYPE_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    Path: "a path",
}
BOUNDS = {
    "ge": ">= {}",
    "gt": "> {}",
    "le": "<= {}",
    "lt": "< {}",
    "pattern": "matching {}",
    "max_length": "of at most {} characters",
}


def parse_overrides(pairs: Iterable[str]) -> Tree:
    """``["train.steps=20"]`` → ``{"train": {"steps": 20}}``. The last of several equal keys wins.

    Values are YAML. They keep their source text, in case their key wants text.
    """
    tree: Tree = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts):
            raise UserError(f"{shown(pair)} given, wanted key=value, e.g. train.steps=20")
        value: Any = read_override(text, key)
        for part in reversed(parts):
            value = {part: value}
        tree = merge(tree, value)
    return tree


def merge(base: Mapping[str, Any], overlay: Mapping[str, Any]) -> Tree:
    """Returns ``overlay`` merged over ``base``, group by group; neither is changed.

    Raises:
        UserError: ``overlay`` has a group of keys where ``base`` has a value, which would be lost.
    """
    merged = dict(base)
    for key, value in overlay.items():
        below = merged.get(key)
        if isinstance(below, Mapping) and isinstance(value, Source):
            value = value.as_value()
        if isinstance(value, Mapping) and isinstance(below, Source):
            below = below.as_value()
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            value = merge(below, value)
        elif isinstance(value, Mapping) and below is not None:
            names = ", ".join(value)
            raise UserError(f"{key}: {shown(below)} given, wanted a group of keys ({names}, …)")
        merged[key] = value
    return merged


def choose_arm(arms: Mapping[str, Tree], arm: str | None) -> Tree:
    """Returns the overlay of ``arm``, empty for ``None``."""
    if arm is None:
        return {}
    if arm not in arms:
        raise UserError(
            f"arm: {shown(arm)} given, wanted one of {', '.join(arms)}{did_you_mean(arm, arms)}"
        )
    return {**arms[arm], "arm": arm}


def resolve_config(
    layers: Iterable[Mapping[str, Any]], task: Callable[..., Any] | None = None
) -> RunConfig:
    """Merges the layers and validates the result, including the options of ``task`` if given."""
    tree: Tree = {}
    for layer in layers:
        tree = merge(tree, layer)
    model = Group if task is None else options_model(task)
    config = _validate(RunConfig, settle_all(tree, model))
    if task is not None:
        _check_options(model, config.task)
    return config


def settle_all(tree: Mapping[str, Any], task: type[BaseModel]) -> Tree:
    """Settles the tree of a run, whose ``task`` holds options of this kind."""
    settled = settle(tree, RunConfig)
    options = settled.get("task")
    if isinstance(options, Mapping):
        settled["task"] = settle(options, task)
    return settled


def check_task_options(factory: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Raises ``UserError`` for ``task`` keys and values that the recipe does not accept."""
    _check_options(options_model(factory), options)


def _check_options(model: type[BaseModel], options: Mapping[str, Any]) -> None:
    read_group("task", model, options)


def read_group(name: str, model: type[ModelT], values: Mapping[str, Any]) -> ModelT:
    """Returns ``values`` as a group of keys.

    Raises:
        UserError: a key or a value that the group does not have; the message begins with ``name``.
    """
    fields: dict[str, Any] = {name: (model, ...)}
    wrapped = create_model("Wrapped", __base__=Group, **fields)
    found: ModelT = getattr(_validate(wrapped, {name: dict(values)}), name)
    return found


def options_model(factory: Callable[..., Any]) -> type[BaseModel]:
    """Returns the keyword arguments of a recipe's constructor as a group of keys."""
    parameters = inspect.signature(factory, eval_str=True).parameters.values()
    fields: dict[str, Any] = {
        parameter.name: (
            Any if parameter.annotation is parameter.empty else parameter.annotation,
            ... if parameter.default is parameter.empty else parameter.default,
        )
        for parameter in parameters
    }
    return create_model("task", __base__=Group, **fields)


def group_of(kind: Any) -> type[BaseModel] | None:
    """Returns the annotation if it is a group of keys, else ``None``."""
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def settle(tree: Mapping[str, Any], model: type[BaseModel]) -> Tree:
    """Replaces every ``Source`` in ``tree`` by its text or its value, as its key's type requires.

    Options of a task are left as they are: only the recipe knows their types.
    """
    settled: Tree = {}
    for key, value in tree.items():
        field = model.model_fields.get(key)
        kind = field.annotation if field is not None else None
        group = group_of(kind)
        holds_keys = group is not None or get_origin(kind) is dict
        if holds_keys and isinstance(value, Source):
            value = value.as_value()
        if holds_keys and isinstance(value, Mapping):
            settled[str(key)] = settle(value, group) if group else _settled_dict(value, kind)
        else:
            settled[str(key)] = _settled(value, kind)
    return settled


def _settled_dict(value: Mapping[str, Any], kind: Any) -> Tree:
    """Settles the values of a ``dict[str, T]``, unless T is Any: then nobody knows their types."""
    _, inner = get_args(kind)
    return {str(k): item if inner is Any else _settled(item, inner) for k, item in value.items()}


def _settled(value: Any, kind: Any) -> Any:
    if isinstance(value, Source):
        nothing = value.strip() in NULLS
        takes_null = Any in _branches(kind) or NoneType in _branches(kind)
        if _wants_text(kind) and not (nothing and takes_null):
            return str(value)
        return _settled(value.as_value(), kind)
    if isinstance(value, Mapping):
        return {_settled(key, None): _settled(item, None) for key, item in value.items()}
    if isinstance(value, list):
        inner = next((part for branch in _branches(kind) for part in get_args(branch)), None)
        return [_settled(item, inner) for item in value]
    return value


def _wants_text(kind: Any) -> bool:
    """Whether a key of this type accepts only text."""
    branches = [branch for branch in _branches(kind) if branch is not NoneType]
    return bool(branches) and all(
        branch in (str, Path)
        or (get_origin(branch) is Literal and all(isinstance(a, str) for a in get_args(branch)))
        for branch in branches
    )


def _branches(kind: Any) -> list[Any]:
    """Returns the members of a union, without their constraints."""
    if get_origin(kind) is Annotated:
        return _branches(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return [part for branch in get_args(kind) for part in _branches(branch)]
    return [kind]


def _validate(model: type[ModelT], tree: Tree) -> ModelT:
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        lines = list(dict.fromkeys(_describe(mistake, model, tree) for mistake in error.errors()))
        # An unknown key usually causes the other errors, so it comes first.
        lines.sort(key=lambda line: not line.startswith(UNKNOWN_KEY))
        more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
        raise UserError(lines[0] + more) from error


def group_from_file(path: Path, name: str, model: type[ModelT]) -> ModelT:
    """Reads a config file that holds one group of keys, ``name: {…}``.

    Raises:
        UserError: the file cannot be read, or holds something else; the message names it.
    """
    try:
        fields: dict[str, Any] = {name: (model, ...)}
        wrapped = create_model("Wrapped", __base__=Group, **fields)
        value = getattr(_validate(wrapped, settle(read_config_file(path), wrapped)), name)
    except UserError as error:
        named = str(error).startswith(str(path))
        raise UserError(str(error) if named else f"{path}: {error}") from error
    return value


def dump_config(config: RunConfig) -> str:
    """Returns a resolved config as YAML that reads back as the same config."""
    return dump_yaml(config.model_dump(mode="json"))


def differing_keys(first: RunConfig, second: RunConfig) -> list[str]:
    """Returns the dotted keys in which two configs differ."""
    left, right = dict(leaves(first.model_dump())), dict(leaves(second.model_dump()))
    return [key for key in {**left, **right} if left.get(key) != right.get(key)]


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the dotted keys and the values of a tree."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _describe(mistake: Any, model: type[BaseModel], tree: Tree) -> str:
    """Describes one of pydantic's errors on one line."""
    path, field = _config_path(mistake["loc"], model)
    key = ".".join(path)
    if mistake["type"] == "extra_forbidden" and "." in path[-1] and key in known_keys(model):
        group, _, rest = key.partition(".")
        return f"{UNKNOWN_KEY} {key} in one word; in a file, write {rest} below {group}:"
    if mistake["type"] == "extra_forbidden":
        return f"{UNKNOWN_KEY} {key}{key_hint(key, known_keys(model))}"
    if not path or field is None or mistake["type"] == "value_error":
        return f"{key}: " * bool(path) + mistake["msg"].removeprefix("Value error, ")
    wants = wanted(field.annotation, field.metadata)
    seen: Any = tree
    for part in path:
        if not isinstance(seen, Mapping) or part not in seen:
            return f"{key}: missing, wanted {wants}"
        seen = seen[part]
    return f"{key}: {'nothing (null)' if seen is None else shown(seen)} given, wanted {wants}"


def _config_path(
    location: tuple[Any, ...], model: type[BaseModel]
) -> tuple[list[str], FieldInfo | None]:
    """Returns the config keys in pydantic's location, which also has union branches and indices."""
    path: list[str] = []
    group: type[BaseModel] | None = model
    field = None
    for part in location:
        if group is None:
            break
        path.append(str(part))
        field = group.model_fields.get(str(part))
        group = group_of(field.annotation) if field else None
    return path, field


def known_keys(group: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yields the dotted keys of a group and of the groups inside it."""
    for name, field in group.model_fields.items():
        yield prefix + name
        if inner := group_of(field.annotation):
            yield from known_keys(inner, f"{prefix}{name}.")


def key_hint(given: str, known: Iterable[str]) -> str:
    """Suggests a key, ``; did you mean X?``, by whole keys and by their last parts.

    ``steps`` suggests ``train.steps``.
    """
    names, given = list(known), given.lower()
    group, _, last = given.rpartition(".")
    same_last = [name for name in names if name.rpartition(".")[2] == last]
    if same_last:
        return f"; did you mean {same_last[0]}?"
    by_last = {name.rpartition(".")[2]: name for name in reversed(names)}
    # If the group is right, the most similar whole key is often the group itself or any key in it.
    nearest = "" if group in names else did_you_mean(given, names)
    return nearest or did_you_mean(last, by_last, by_last)


def wanted(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """Describes in words what a field's type accepts."""
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *extra = get_args(annotation)
        return wanted(inner, extra)
    if origin is Literal:
        choices = ", ".join(map(str, get_args(annotation)))
        return f"one of {choices}" if len(get_args(annotation)) > 1 else choices
    if origin in (Union, UnionType):
        return " or ".join(wanted(branch) for branch in get_args(annotation))
    if origin is tuple:
        return "[" + ", ".join(wanted(item) for item in get_args(annotation)) + "]"
    if origin is list:
        return f"[{wanted(get_args(annotation)[0])}, …]"
    if annotation is NoneType:
        return "null"
    if group_of(annotation) or origin is dict:
        return "a group of keys"
    bounds = [
        text.format(bound)
        for constraint in metadata
        for name, text in BOUNDS.items()
        for source in [constraint, *getattr(constraint, "metadata", ())]
        if (bound := getattr(source, name, None)) is not None
    ]
    return " ".join([TYPE_NAMES.get(annotation, str(annotation)), " and ".join(bounds)]).rstrip()
