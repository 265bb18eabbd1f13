"""Finds a user's function or factory by name.

Imports the standard library alone and runs on Python 3.7: other interpreters read this file too.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any, Sequence  # noqa: UP035

FACTS = ("codebook_size", "codes_per_second", "sample_rate")


def find(name: str, paths: Sequence[str] = ()) -> Any:
    """Imports ``MODULE:NAME``, with ``paths`` behind the import path, which they stay on.

    Raises ``ValueError`` for another form, and whatever the import raises.
    """
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise ValueError(f"{name!r} given, wanted MODULE:NAME")
    # Behind the others, so that a file there hides no installed package.
    sys.path.extend(path for path in paths if path not in sys.path)
    found = importlib.import_module(module)
    for part in attribute.split("."):
        found = getattr(found, part)
    return found


def facts(codec: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Returns the facts of a codec, its own attributes where ``given`` has ``None``.

    Raises ``ValueError`` if one is nowhere.
    """
    result = {}
    for name in FACTS:
        value = given.get(name)
        result[name] = getattr(codec, name, None) if value is None else value
        if result[name] is None:
            raise ValueError(f"{name} is neither given nor an attribute of {type(codec).__name__}")
    return result
