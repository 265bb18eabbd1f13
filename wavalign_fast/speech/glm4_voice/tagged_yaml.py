"""Reads YAML with the tags of HyperPyYAML as plain data; no class or function is called."""

import re
from pathlib import Path
from typing import Any

from wavalign_fast.errors import UserError, one_line, shown

_REFERENCE = re.compile(r"<([A-Za-z_][\w]*)>")


def read_tagged_yaml(path: Path, *keys: str) -> list[Any]:
    """Reads top-level entries of a file whose tags name classes; ``None`` for one that is missing.

    ``!new:CLASS`` and the like become an entry ``"!new": "CLASS"`` of their mapping, and
    ``!ref <NAME>`` the value of the top-level entry NAME.

    Raises:
        UserError: the file is no such YAML, or a reference is more than a name.
    """
    import yaml

    try:
        with path.open(encoding="utf-8") as file:
            root = yaml.load(file, Loader=_loader())
    except yaml.YAMLError as error:
        raise UserError(f"not YAML: {one_line(error)}") from error
    if not isinstance(root, dict):
        raise UserError(f"holds {shown(root)}, wanted a mapping")
    # Only these: what else the file has, as for training, may refer in ways that are not known.
    return [_resolved(root.get(key), root, 0) for key in keys]


class _Reference:
    def __init__(self, text: str) -> None:
        self.text = text


def _loader() -> type:
    import yaml

    class Loader(yaml.SafeLoader):
        """Knows no tag that runs anything."""

    def construct(loader: Any, suffix: str, node: Any) -> Any:
        kind, _, name = suffix.partition(":")
        if kind == "ref" and isinstance(node, yaml.ScalarNode):
            return _Reference(node.value)
        if isinstance(node, yaml.MappingNode):
            return {f"!{kind}": name, **loader.construct_mapping(node, deep=True)}
        if isinstance(node, yaml.SequenceNode):
            return {f"!{kind}": name, "arguments": loader.construct_sequence(node, deep=True)}
        return {f"!{kind}": name}

    Loader.add_multi_constructor("!", construct)
    return Loader


def _resolved(value: Any, root: dict[str, Any], depth: int) -> Any:
    if depth > 40:
        raise UserError("references lead in a circle")
    if isinstance(value, _Reference):
        name = _REFERENCE.fullmatch(value.text.strip())
        if name is None or name[1] not in root:
            raise UserError(f"!ref {shown(value.text)} is no name of a top-level entry")
        return _resolved(root[name[1]], root, depth + 1)
    if isinstance(value, dict):
        return {key: _resolved(item, root, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolved(item, root, depth + 1) for item in value]
    return value
