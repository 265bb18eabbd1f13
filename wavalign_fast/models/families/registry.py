"""Finds the family of a model directory, or loads one of the user's own."""

import importlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from wavalign_fast.errors import UserError, described, did_you_mean
from wavalign_fast.models.families.interface import FUNCTIONS, Family
from wavalign_fast.models.json_files import read_config, read_json

FAMILIES: tuple[str, ...] = ()
"""Modules of this package. Where several are equally sure of a directory, the first one has it."""


def find_family(directory: Path) -> Family | None:
    """Returns the family that the files of ``directory`` tell, ``None`` for a plain model.

    Raises:
        DamagedFileError: a file cannot be read.
        UserError: there is no ``config.json``.
    """
    config, tokens = read_config(directory), _added_tokens(directory)
    families = [_built_in(name) for name in FAMILIES]
    sure = [family.detect(config, tokens) for family in families]
    return families[sure.index(max(sure))] if any(sure) else None


def named_family(name: str) -> Family:
    """Returns the family called ``name``, or that of the user's file ``name``, which ends in .py.

    Raises:
        UserError: there is none, the file cannot be run, or it lacks a function.
    """
    if name.endswith(".py"):
        return _from_file(Path(name).expanduser())
    if name not in FAMILIES:
        raise UserError(
            f"family {name!r}: not known, wanted one of {', '.join(FAMILIES)} or a FILE.py"
            f"{did_you_mean(name, FAMILIES)}"
        )
    return _built_in(name)


def _added_tokens(directory: Path) -> set[str]:
    decoder = read_json(directory / "tokenizer_config.json").get("added_tokens_decoder")
    entries = decoder.values() if isinstance(decoder, Mapping) else ()
    contents = [entry.get("content") for entry in entries if isinstance(entry, Mapping)]
    return {token for token in contents if isinstance(token, str)}


def _built_in(name: str) -> Family:
    return cast(Family, importlib.import_module(f"wavalign_fast.models.families.{name}"))


def _from_file(path: Path) -> Family:
    if not path.is_file():
        raise UserError(f"family {path}: no such file")
    # The name keeps the file from hiding an installed module; dataclasses look it up.
    name = f"wavalign_family_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's file raises
        raise UserError(f"family {path}: {described(error)}") from error
    missing = [name for name in FUNCTIONS if not callable(getattr(module, name, None))]
    if not isinstance(getattr(module, "NAME", None), str):
        missing.insert(0, "NAME")
    if missing:
        raise UserError(f"family {path}: {', '.join(missing)} missing")
    return cast(Family, module)
