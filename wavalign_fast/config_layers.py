"""Puts a ``RunConfig`` together from layers, and says on one line what is wrong with one.

Later layers win: recipe defaults, the arm's overlay, the user's YAML file, ``key=value`` overrides.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError, create_model
from pydantic.fields import FieldInfo

from wavalign_fast.config import Group, RunConfig
from wavalign_fast.errors import UserError, one_line

Tree = dict[str, Any]
ModelT = TypeVar("ModelT", bound=BaseModel)

UNKNOWN_KEY = "unknown key"

TYPE_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    Path: "a path",
}
BOUNDS = {"ge": ">= {}", "gt": "> {}", "le": "<= {}", "lt": "< {}", "pattern": "matching {}"}


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, except that 1e-4 is a number (YAML 1.1 wants 1.0e-4)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def parse_yaml(text: str, source: str) -> Any:
    """The value of a YAML text; ``source`` names it in the error."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or one_line(error)
        raise UserError(f"{source}{line}: not valid YAML: {problem}") from error


def read_config_file(path: Path) -> Tree:
    """The mapping in a user's YAML file."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"no such config file: {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {one_line(error)}") from error
    tree = parse_yaml(text, str(path))
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"{path}: {type(tree).__name__} given, wanted a mapping of keys")
    return tree


def parse_overrides(pairs: Iterable[str]) -> Tree:
    """``["train.steps=20"]`` → ``{"train": {"steps": 20}}``; values are YAML."""
    tree: Tree = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts):
            raise UserError(f"{pair!r} given, wanted key=value, e.g. train.steps=20")
        value: Any = parse_yaml(text, key)
        for part in reversed(parts):
            value = {part: value}
        tree = merge(tree, value)
    return tree


def merge(base: Mapping[str, Any], overlay: Mapping[str, Any]) -> Tree:
    """``overlay`` over ``base``, group by group; neither is changed."""
    merged = dict(base)
    for key, value in overlay.items():
        below = merged.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            value = merge(below, value)
        merged[key] = value
    return merged


def choose_arm(arms: Mapping[str, Tree], arm: str | None) -> Tree:
    """The overlay of ``arm``; nothing for no arm."""
    if arm is None:
        return {}
    if arm not in arms:
        raise UserError(f"arm: {arm!r} given, wanted one of {', '.join(arms)}{_hint(arm, arms)}")
    return {**arms[arm], "arm": arm}


def resolve_config(layers: Iterable[Mapping[str, Any]]) -> RunConfig:
    """Merges the layers and validates the result."""
    tree: Tree = {}
    for layer in layers:
        tree = merge(tree, layer)
    return _validate(RunConfig, tree)


def check_task_options(factory: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Refuses ``task`` keys and values that the recipe's constructor does not take."""
    parameters = inspect.signature(factory, eval_str=True).parameters.values()
    fields: dict[str, Any] = {
        parameter.name: (
            Any if parameter.annotation is parameter.empty else parameter.annotation,
            ... if parameter.default is parameter.empty else parameter.default,
        )
        for parameter in parameters
    }
    taken = create_model("task", __base__=Group, **fields)
    wrapped = create_model("Wrapped", __base__=Group, task=(taken, ...))
    _validate(wrapped, {"task": dict(options)})


def _validate(model: type[ModelT], tree: Tree) -> ModelT:
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        lines = list(dict.fromkeys(_describe(mistake, model, tree) for mistake in error.errors()))
        # An unknown key is usually the cause of the rest, so it comes first.
        lines.sort(key=lambda line: not line.startswith(UNKNOWN_KEY))
        more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
        raise UserError(lines[0] + more) from error


def dump_config(config: RunConfig) -> str:
    """The YAML of a resolved config; reading it back gives the same config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def differing_keys(first: RunConfig, second: RunConfig) -> list[str]:
    """Dotted keys in which two configs differ."""
    left, right = dict(_leaves(first.model_dump())), dict(_leaves(second.model_dump()))
    return [key for key in {**left, **right} if left.get(key) != right.get(key)]


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _describe(mistake: Any, model: type[BaseModel], tree: Tree) -> str:
    """One line for one of pydantic's errors."""
    path, field = _config_path(mistake["loc"], model)
    key = ".".join(path)
    if mistake["type"] == "extra_forbidden":
        return f"{UNKNOWN_KEY} {key}{_hint(key, _known_keys(model))}"
    if not path or field is None:
        return mistake["msg"].removeprefix("Value error, ")
    wanted = _wanted(field.annotation, field.metadata)
    seen: Any = tree
    for part in path:
        if part not in seen:
            return f"{key}: missing, wanted {wanted}"
        seen = seen[part]
    return f"{key}: {seen!r} given, wanted {wanted}"


def _config_path(
    location: tuple[Any, ...], model: type[BaseModel]
) -> tuple[list[str], FieldInfo | None]:
    """The part of pydantic's location that is config keys (it adds union branches and indices)."""
    path: list[str] = []
    group: Any = model
    field = None
    for part in location:
        if not (isinstance(group, type) and issubclass(group, BaseModel)):
            break
        path.append(str(part))
        field = group.model_fields.get(str(part))
        group = field.annotation if field else None
    return path, field


def _known_keys(group: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in group.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _known_keys(field.annotation, f"{prefix}{name}.")


def _hint(given: str, known: Iterable[str]) -> str:
    """``; did you mean X?``, by whole keys, then by last parts (``steps`` → ``train.steps``)."""
    names = list(known)
    last = given.rpartition(".")[2]
    same_last = [name for name in names if name.rpartition(".")[2] == last]
    close = same_last or get_close_matches(given, names, n=1)
    if not close:
        by_last = {name.rpartition(".")[2]: name for name in reversed(names)}
        close = [by_last[match] for match in get_close_matches(last, by_last, n=1)]
    return f"; did you mean {close[0]}?" if close else ""


def _wanted(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """What a field's type accepts, in words."""
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *extra = get_args(annotation)
        return _wanted(inner, extra)
    if origin is Literal:
        choices = ", ".join(map(str, get_args(annotation)))
        return f"one of {choices}" if len(get_args(annotation)) > 1 else choices
    if origin in (Union, UnionType):
        return " or ".join(_wanted(branch) for branch in get_args(annotation))
    if origin is tuple:
        return "[" + ", ".join(_wanted(item) for item in get_args(annotation)) + "]"
    if annotation is NoneType:
        return "null"
    if (isinstance(annotation, type) and issubclass(annotation, BaseModel)) or origin is dict:
        return "a group of keys"
    bounds = [
        text.format(bound)
        for constraint in metadata
        for name, text in BOUNDS.items()
        for source in [constraint, *getattr(constraint, "metadata", ())]
        if (bound := getattr(source, name, None)) is not None
    ]
    return " ".join([TYPE_NAMES.get(annotation, str(annotation)), " and ".join(bounds)]).rstrip()
