"""Reads weights, and gives a model exactly those that it has."""

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from wavalign_fast.errors import UserError, described, naming


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Reads a safetensors file.

    Raises:
        UserError: there is no such file, or it is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    with naming(str(path)):
        try:
            return load_file(path)
        except SafetensorError as error:
            raise UserError(described(error)) from error


def read_pickle(path: Path) -> dict[str, Tensor]:
    """Reads the tensors of a ``.pt`` file; nothing that it names is run.

    Raises:
        UserError: there is no such file, it is damaged, or it holds more than data.
    """
    with naming(str(path)):
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise UserError(described(error)) from error
        if not isinstance(content, Mapping):
            raise UserError(f"holds {type(content).__name__}, wanted weights by name")
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


def load_strictly(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Gives a model on the meta device its weights, as float32.

    Raises:
        UserError: weights are missing, left over or of another shape; all of them are listed.
    """
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    faults = [f"{name} is missing" for name in sorted(wanted.keys() - weights.keys())]
    faults += [f"{name} is not known" for name in sorted(weights.keys() - wanted.keys())]
    faults += [
        f"{name} is {list(weights[name].shape)}, wanted {list(shape)}"
        for name, shape in wanted.items()
        if name in weights and tuple(weights[name].shape) != shape
    ]
    if faults:
        raise UserError(f"weights do not fit: {'; '.join(faults)}")
    model.load_state_dict({name: value.float() for name, value in weights.items()}, assign=True)
