"""Loads causal LMs from directories, without running their code or reading a pickle."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wavalign_fast.errors import DamagedFileError, UserError, one_line
from wavalign_fast.models.json_files import check_config_is_there, read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from wavalign_fast.models.families.interface import Family

logger = logging.getLogger(__name__)


def load_checkpoint(
    directory: Path,
    like: "PreTrainedModel | None" = None,
    *,
    dtype: torch.dtype | None = None,
    family: "Family | None" = None,
) -> "PreTrainedModel":
    """Loads the model saved in ``directory``, without running code from the checkpoint.

    A family's own directory gives the native model of its language model.

    Args:
        like: a model whose weights must have the same names and shapes; its dtype is the default.
        dtype: dtype of the loaded weights; by default the one in which they are saved.
        family: in whose format the model is saved; by default as the files tell.

    Raises:
        DamagedFileError: the checkpoint cannot be read.
        UserError: there is no checkpoint, or it is of another model than ``like``.
    """
    from wavalign_fast.models.families.checkpoint import load_family_model
    from wavalign_fast.models.families.registry import storing_family

    dtype = dtype or (None if like is None else like.dtype)
    with reading(directory):
        if family := family or storing_family(directory):
            model = load_family_model(directory, family, dtype)
        else:
            model = _load_plain(directory, dtype)
    if like is not None:
        check_same_shapes(directory, shapes_of(model.state_dict()), shapes_of(like.state_dict()))
    return model


def _load_plain(directory: Path, dtype: torch.dtype | None) -> "PreTrainedModel":
    from transformers import AutoModelForCausalLM

    from wavalign_fast.models.families.registry import register_own_class

    register_own_class(directory)
    say_that_code_is_not_run(directory)
    return AutoModelForCausalLM.from_pretrained(
        directory,
        local_files_only=True,
        dtype=dtype or "auto",
        # A checkpoint is data: run no code from it and read no pickle.
        trust_remote_code=False,
        use_safetensors=True,
    )


@contextmanager
def reading(directory: Path) -> Iterator[None]:
    """Reads the model in ``directory`` in a block, and names it in what goes wrong.

    Raises:
        DamagedFileError: it cannot be read.
        UserError: there is no model, or the block found a mistake in it.
    """
    check_config_is_there(directory)
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # transformers and safetensors raise many types for a bad file
        reason = one_line(error)
        if "trust_remote_code" in str(error):  # transformers advises to run the checkpoint's code
            reason = "only code of its own can load it, and code of a checkpoint is never run"
        raise DamagedFileError(f"checkpoint {directory} cannot be read: {reason}") from error


def say_that_code_is_not_run(directory: Path) -> None:
    """Warns of a model directory that names code of its own."""
    config = read_json(directory / "config.json")
    if "auto_map" in config:
        logger.warning(
            "checkpoint %s names code of its own (auto_map): it is not run; the model of type %s "
            "from transformers is used",
            directory,
            config.get("model_type"),
        )


def check_same_shapes(
    directory: Path, found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]
) -> None:
    """Raises ``UserError`` unless the weights in ``directory`` have the wanted names and shapes."""
    for name in {**wanted, **found}:
        if found.get(name) != wanted.get(name):
            raise UserError(
                f"checkpoint {directory} is of another model: {name} is "
                f"{found.get(name, 'missing')}, wanted {wanted.get(name, 'no such weight')}"
            )


def shapes_of(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each tensor, by name."""
    return {name: tuple(weight.shape) for name, weight in weights.items()}


def cast_weights(model: "PreTrainedModel", dtype: torch.dtype) -> None:
    """Casts the parameters in place, and leaves the buffers alone.

    ``model.to(bfloat16)`` would round the rotary frequencies too: positions far apart would then
    rotate by other angles than in the model that was trained.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
