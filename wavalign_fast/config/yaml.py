"""Reads and writes YAML without dropping a value or changing its type.

YAML guesses types: it reads a run named 3e8 as a number and one named ``no`` as false. Here such a
scalar keeps its source text (``Source``) until the type of its key decides which one was meant.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from wavalign_fast.errors import UserError, one_line, shorten

Tree = dict[str, Any]

MAX_DEPTH = 40
MAX_VALUES = 100_000
FLOAT = re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
# YAML 1.1 reads 010 as 8 and 1:30 as 90, which is hardly ever meant.
SURPRISING_INT = re.compile(r"[-+]?(0[0-9_]+|.*:.*)")
NONZERO_MANTISSA = re.compile(r"[^eE]*[1-9]")


class Source(str):
    """Text as the user wrote it, together with the value that YAML reads from it."""

    value: Any
    error: UserError | None

    def __new__(cls, text: str, value: Any, error: UserError | None = None) -> "Source":
        """Set ``error`` instead of ``value`` if the text is not valid YAML."""
        source = super().__new__(cls, text)
        source.value, source.error = value, error
        return source

    def as_value(self) -> Any:
        """Returns the value that YAML reads; raises ``UserError`` if the text is not valid YAML."""
        if self.error is not None:
            raise self.error
        return self.value


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, except that 1e-4 is a number and that source text is kept.

    In YAML 1.1 only 1.0e-4 is a number.
    """

    def construct_guess(self, node: yaml.ScalarNode) -> Any:
        """Returns the value of a scalar that YAML does not read as text."""
        kind = node.tag.rpartition(":")[2]
        text = str(self.construct_scalar(node))  # refuses a list or a mapping tagged as a number
        if kind == "int" and SURPRISING_INT.fullmatch(text):
            return text
        try:
            value = getattr(self, f"construct_yaml_{kind}")(node)
        except (ValueError, LookupError, AttributeError):
            # More digits than Python converts, a 13th month, or a tag that does not fit the text.
            return text
        if kind == "float" and value == 0.0 and NONZERO_MANTISSA.match(text):
            return text  # 1e-400: below every floating-point number, but not 0
        return Source(text, value)


class _Dumper(yaml.SafeDumper):
    """Quotes every text that ``_Loader`` would not read back as text."""


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+.0123456789"))
for _kind in ("int", "float", "bool", "timestamp"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_guess)


def parse_yaml(text: str, source: str) -> Any:
    """Parses a YAML text, with guessed scalars as ``Source``; errors name ``source``."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _refuse_duplicate_keys(node, source)
        tree = loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or one_line(error)
        if problem.startswith("but "):  # PyYAML keeps the first half of this sentence in context
            problem = f"{getattr(error, 'context', None)}, {problem}"
        raise UserError(f"{source}{line}: not valid YAML: {problem}") from error
    except RecursionError as error:
        raise UserError(f"{source}: nested too deep, wanted at most {MAX_DEPTH} levels") from error
    _check_size(tree, source)
    return tree


def dump_yaml(tree: Tree) -> str:
    """Returns YAML that ``parse_yaml`` reads back as the same values."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False)


def read_config_file(path: Path) -> Tree:
    """Reads the mapping in a user's YAML file."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"no such config file: {path}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise UserError(f"{path}: cannot be read: {reason}") from error
    tree = parse_yaml(text, str(path))
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        seen = type(tree.value if isinstance(tree, Source) else tree).__name__
        raise UserError(f"{path}: {seen} given, wanted a mapping of keys")
    return tree


def read_override(text: str, key: str) -> Any:
    """Parses the right side of key=value as YAML and keeps its text, in case the key wants text."""
    try:
        value = parse_yaml(text, key)
    except UserError as error:
        return Source(text, None, error)
    if text.lstrip()[:1] in ("'", '"') and isinstance(value, str):
        return value
    return Source(text, value.value if isinstance(value, Source) else value)


def _refuse_duplicate_keys(root: yaml.Node, source: str) -> None:
    """Raises ``UserError`` for equal keys: PyYAML would silently keep only the last."""
    nodes, visited = [root], set()
    while nodes:
        node = nodes.pop()
        if id(node) in visited or isinstance(node, yaml.ScalarNode):
            continue
        visited.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
            continue
        lines: dict[str, int] = {}
        for key, value in node.value:
            nodes += [key, value]
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            if key.value in lines:
                raise UserError(
                    f"{source}:{line}: key {shorten(key.value)} is given twice, "
                    f"first in line {lines[key.value]}"
                )
            lines[key.value] = line


def _check_size(tree: Any, source: str) -> None:
    """Raises ``UserError`` for values that aliases make huge or infinitely deep."""
    level, count = [tree], 0
    for _ in range(MAX_DEPTH):
        level = [item for value in level for item in _items(value)]
        count += len(level)
        if count > MAX_VALUES:
            raise UserError(f"{source}: more than {MAX_VALUES} values, aliases counted")
        if not level:
            return
    raise UserError(f"{source}: nested too deep, wanted at most {MAX_DEPTH} levels")


def _items(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [*value.values()]
    return [*value] if isinstance(value, list | tuple | set) else []
