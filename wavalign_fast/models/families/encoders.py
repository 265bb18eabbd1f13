"""Encoders of prompt audio in a family's files: their tensors stay aside in an export.

A family that has one has a function more than ``Family``: ``audio_encoder(files)``.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from wavalign_fast.models.families.interface import Family, FamilyFiles
from wavalign_fast.models.families.weight_table import Shape
from wavalign_fast.models.prompt_audio.encoder import PromptAudioEncoder, with_prefix
from wavalign_fast.models.weight_files import WeightFiles


def load_audio_encoder(family: Family, files: FamilyFiles) -> PromptAudioEncoder | None:
    """Loads the frozen encoder of prompt audio; ``None`` for a family that hears codes alone.

    Raises:
        UserError: a file or a tensor is missing or does not fit.
    """
    load = getattr(family, "audio_encoder", None)
    return None if load is None else cast("PromptAudioEncoder | None", load(files))


def aside_shapes(build: Callable[[], nn.Module]) -> dict[str, Shape | None]:
    """Returns names and shapes of the weights of a module, which is built without memory."""
    with torch.device("meta"):
        module = build()
    return {name: tuple(weight.shape) for name, weight in module.named_parameters()}


def first_stored(places: Sequence[tuple[Path, str]]) -> dict[str, Tensor]:
    """Reads the tensors of the first directory that has some under its prefix, named without it.

    Raises:
        UserError: a file is missing.
    """
    for directory, prefix in places:
        if found := with_prefix(stored_tensors(directory, [prefix]), prefix):
            return found
    return {}


def stored_tensors(directory: Path, prefixes: Sequence[str]) -> dict[str, Tensor]:
    """Reads the stored tensors whose names begin with one of ``prefixes``.

    Raises:
        UserError: a file is missing or damaged, or a tensor is quantized.
    """
    with WeightFiles(directory) as files:
        names = [name for name in files.names if name.startswith(tuple(prefixes))]
        files.check_dtypes(names)
        return {name: files.tensor(name).clone() for name in names}
