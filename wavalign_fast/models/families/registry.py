"""Finds the family of a model directory, or loads one of the user's own."""

import importlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from wavalign_fast.errors import UserError, described, did_you_mean
from wavalign_fast.models.families.interface import EVIDENCE, FUNCTIONS, Family
from wavalign_fast.models.json_files import read_config, read_json

FAMILIES = ("vita_audio", "glm4_voice", "step_audio_2", "covo_audio", "kimi_audio")
"""Modules of this package. Where several are equally sure of a directory, the first one has it."""

FAMILY_KEY = "wavalign_family"
"""In ``config.json`` of a converted directory: the family whose language model it is."""

KIMI_AUDIO_TYPE = "wavalign_kimi_audio"
"""``model_type`` of a checkpoint of Kimi-Audio, for which transformers has no class of its own."""


def register_own_class(directory: Path) -> None:
    """Lets transformers' auto classes read ``directory`` if its class is one of this package."""
    if read_json(directory / "config.json").get("model_type") == KIMI_AUDIO_TYPE:
        importlib.import_module("wavalign_fast.models.families.kimi_model")


def find_family(directory: Path, *, least: int = 1) -> Family | None:
    """Returns the family that the files of ``directory`` tell, ``None`` for a plain model.

    Args:
        least: how sure it must be, of ``EVIDENCE``.

    Raises:
        DamagedFileError: a file cannot be read.
        UserError: there is no ``config.json``.
    """
    config, tokens = read_config(directory), _added_tokens(directory)
    if config.get(FAMILY_KEY) in FAMILIES:
        return _built_in(config[FAMILY_KEY]) if least <= EVIDENCE["tokens"] else None
    families = [_built_in(name) for name in FAMILIES]
    sure = [family.detect(config, tokens) for family in families]
    best = max(sure)
    return families[sure.index(best)] if best >= least else None


def storing_family(directory: Path) -> Family | None:
    """Returns the family in whose own format ``directory`` is stored.

    ``None`` for a model in transformers' format, a family's converted one included.

    Raises:
        UserError: there is no ``config.json``, or a file cannot be read.
    """
    return find_family(directory, least=EVIDENCE["key"])


def family_of(directory: Path) -> Family:
    """Returns the family that the files of ``directory`` tell.

    Raises:
        UserError: they tell none.
    """
    family = find_family(directory)
    if family is None:
        told = {key: read_config(directory).get(key) for key in ("architectures", "model_type")}
        raise UserError(f"{directory} is of no known family: {told}; known: {', '.join(FAMILIES)}")
    return family


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
    # Newer releases of transformers leave the list to tokenizer.json.
    listed = read_json(directory / "tokenizer.json").get("added_tokens") if not decoder else None
    entries = decoder.values() if isinstance(decoder, Mapping) else listed or ()
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
