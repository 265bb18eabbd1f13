"""Warnings of what works but may surprise, each given once in a process."""

import warnings

import torch

_given: set[str] = set()


def warn_once(message: str) -> None:
    """Warns with ``message``, unless it was given before or a graph is traced."""
    if message not in _given and not torch.compiler.is_compiling():
        _given.add(message)
        warnings.warn(message, stacklevel=6)
