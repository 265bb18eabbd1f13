"""Imports what the user names: a speech recogniser, a registry of instructions."""

from collections.abc import Mapping
from typing import Any

from wavalign_fast.errors import UserError, described, did_you_mean, shown
from wavalign_fast.rewards.serving import import_source


def load_object(option: str, name: str) -> Any:
    """Returns what ``FILE.py:NAME`` or ``PACKAGE.MODULE:NAME`` names.

    Raises:
        UserError: there is none, or its module cannot be imported; the message begins with option.
    """
    source, colon, attribute = name.rpartition(":")
    if not colon or not source or not attribute.isidentifier():
        wanted = "FILE.py:NAME or PACKAGE.MODULE:NAME"
        raise UserError(f"{option}: {shown(name)} given, wanted {wanted}")
    try:
        module = import_source(source)
    except Exception as error:  # whatever the user's code raises
        raise UserError(f"{option}: {source} cannot be imported: {described(error)}") from error
    if not hasattr(module, attribute):
        raise UserError(
            f"{option}: {source} has no {attribute}{did_you_mean(attribute, vars(module))}"
        )
    return getattr(module, attribute)


def load_function(option: str, name: str) -> Any:
    """Returns a function that the user names."""
    found = load_object(option, name)
    if not callable(found):
        raise UserError(f"{option}: {name} is {shown(found)}, wanted a function")
    return found


def load_registry(option: str, name: str) -> Mapping[str, Any]:
    """Returns a registry of instructions that the user names: a mapping from name to class."""
    found = load_object(option, name)
    if not isinstance(found, Mapping):
        raise UserError(f"{option}: {name} is {shown(found)}, wanted a dict of instructions")
    return found
