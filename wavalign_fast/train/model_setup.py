"""The model of a run: where its weights come from, and what is done to it before training."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from wavalign_fast.config.model import ModelConfig
from wavalign_fast.config.schema import RunConfig
from wavalign_fast.errors import UserError, naming
from wavalign_fast.models import (
    add_lora,
    cast_weights,
    check_liger,
    compile_layers,
    empty_model,
    fill_shards,
    load_checkpoint,
    middle_rows,
    recompute_activations,
    set_attention,
    use_liger,
)
from wavalign_fast.train.task_protocol import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def compute_dtype(config: ModelConfig) -> torch.dtype | None:
    """Returns the dtype of forward and backward passes, ``None`` if it is that of the weights."""
    if config.compute_dtype in (None, config.dtype):
        return None
    return getattr(torch, config.compute_dtype)


def sampling_dtype(config: RunConfig) -> torch.dtype | None:
    """Returns the dtype of the weights that sample, ``None`` if it is that of the stored ones."""
    named = config.rollout.dtype
    if named == "same":
        return compute_dtype(config.model)
    return None if named == config.model.dtype else getattr(torch, named)


def load_base_model(
    config: ModelConfig, task: Task, *, in_shards: bool = False
) -> "PreTrainedModel":
    """Loads the model that training starts from: ``model.path``, or else the recipe's own.

    It has the dtype and the attention of the configuration.

    Args:
        in_shards: leaves the weights of ``model.path`` on the meta device, if each rank can read
            its shards later: ``fill_base_model``.

    Raises:
        UserError: there is no model in ``model.path``, or it cannot be read or used.
    """
    dtype = getattr(torch, config.dtype)
    if config.path is None:
        model = task.load_model()
        cast_weights(model, dtype)
    else:
        directory, model = _directory(config), None
        with naming("model.path"):
            if in_shards:
                model = empty_model(directory, dtype=dtype)
            if model is None:
                model = load_checkpoint(directory, dtype=dtype)
    with naming("model.attention"):
        set_attention(model, config.attention)
    return model


def fill_base_model(model: "PreTrainedModel", config: ModelConfig) -> None:
    """Reads this rank's shards of a model whose weights ``load_base_model`` left out.

    Raises:
        UserError: the files cannot be read.
    """
    with naming("model.path"):
        fill_shards(model, _directory(config))


def load_mtp(config: RunConfig, task: Task, model: "PreTrainedModel") -> nn.Module | None:
    """Loads the MTP layers beside the model, if ``anchor.mtp_loss_weight`` trains them.

    Raises:
        UserError: the task has none.
    """
    if not (config.anchor.mtp_loss_weight and config.needs_anchor):
        return None
    with naming("anchor.mtp_loss_weight"):
        load = getattr(task, "load_mtp", None)
        if load is None:
            raise UserError(
                f"{type(task).__name__} has no MTP layers, wanted 0, or a recipe and a model with "
                "some"
            )
        layers: nn.Module = load(model)
        return layers


def middle_rows_of(model: "PreTrainedModel", config: ModelConfig) -> dict[str, Tensor]:
    """Returns one row of each weight that ``load_base_model`` has loaded, or has left in its file.

    Raises:
        UserError: the files cannot be read.
    """
    weights = dict(model.named_parameters())
    if any(weight.is_meta for weight in weights.values()):
        with naming("model.path"):
            return middle_rows(_directory(config))
    return {name: w.detach()[len(w) // 2 :][:1] for name, w in weights.items() if w.ndim}


def _directory(config: ModelConfig) -> Path:
    assert config.path is not None
    return Path(config.path).expanduser()


def check_kernels(config: ModelConfig) -> None:
    """Raises ``UserError`` if the kernels of the configuration cannot be used here."""
    if config.kernels == "liger":
        with naming("model.kernels"):
            check_liger()


def set_kernels(model: "PreTrainedModel", config: ModelConfig) -> None:
    """Makes a loaded model compute by the kernels of the configuration.

    Raises:
        UserError: they cannot be used here, or not for this model.
    """
    if config.kernels == "liger":
        with naming("model.kernels"):
            use_liger(model)


def prepare_model(
    model: "PreTrainedModel", config: ModelConfig, *, seed: int = 0
) -> "PreTrainedModel":
    """Sets a loaded model up for training, before anything wraps it.

    Checkpointing is inside what is compiled, and both are inside the hooks that gather shards.

    Args:
        seed: of the first values of adapters.

    Raises:
        UserError: adapters are wanted, but not possible.
    """
    if config.lora.rank:
        with naming("model.lora"):
            add_lora(
                model,
                rank=config.lora.rank,
                alpha=config.lora.alpha,
                targets=config.lora.targets,
                head=config.lora.head,
                seed=seed,
                # No file has their values: they are made now, those of the weights read later.
                device=torch.device("cpu") if model.device.type == "meta" else None,
            )
    if config.activation_checkpointing:
        recompute_activations(model)
    if config.compile:
        compile_layers(model)
    return model
