"""Splits Hugging Face causal LMs into a backbone with hidden states and an output head.

The head is never called: the fused losses take the hidden states and the head's weight, and the
logits are never built.
"""

import copy
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wavalign_fast.errors import DamagedFileError, UserError, one_line
from wavalign_fast.losses import ModalityLayout
from wavalign_fast.models.head import output_head

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


def hidden_states(model: "PreTrainedModel", blocks: Sequence[Tensor]) -> Tensor:
    """Computes last hidden states [T, H] of right-padded blocks of ids [R_b, L_b].

    Calls the model once per block, without an attention mask: in a causal model a token never
    attends to the padding on its right, and without a mask attention takes its fast causal path.
    """
    if not blocks:
        return model.get_input_embeddings().weight[:0]
    backbone = model.base_model
    return torch.cat(
        [backbone(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1) for ids in blocks]
    )


def check_vocabulary(model: "PreTrainedModel", layout: ModalityLayout) -> None:
    """Raises ``UserError`` unless the head has as many rows as the layout has ids."""
    rows = output_head(model).weight.shape[0]
    if rows != layout.vocab_size:
        raise UserError(
            f"model vocabulary: {rows} rows in the head, wanted {layout.vocab_size}, the layout's"
        )


def frozen_copy(model: "PreTrainedModel") -> "PreTrainedModel":
    """Returns a copy in eval mode without gradients, the reference of the KL."""
    return copy.deepcopy(model).eval().requires_grad_(False)


def load_checkpoint(directory: Path, like: "PreTrainedModel | None" = None) -> "PreTrainedModel":
    """Loads the model saved in ``directory``, without running code from the checkpoint.

    Args:
        like: a model whose weights must have the same names and shapes.

    Raises:
        DamagedFileError: the checkpoint cannot be read.
        UserError: there is no checkpoint, or it is of another model than ``like``.
    """
    from transformers import AutoModelForCausalLM

    if not (directory / "config.json").is_file():
        raise UserError(f"no checkpoint in {directory}: config.json is missing")
    _say_that_code_is_not_run(directory)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            directory,
            local_files_only=True,
            dtype="auto" if like is None else like.dtype,
            # A checkpoint is data: run no code from it and read no pickle.
            trust_remote_code=False,
            use_safetensors=True,
        )
    except Exception as error:  # transformers and safetensors raise many types for a bad file
        reason = one_line(error)
        if "trust_remote_code" in str(error):  # transformers advises to run the checkpoint's code
            reason = "only code of its own can load it, and code of a checkpoint is never run"
        raise DamagedFileError(f"checkpoint {directory} cannot be read: {reason}") from error
    if like is not None:
        _check_same_shapes(directory, model, like)
    return model


def _say_that_code_is_not_run(directory: Path) -> None:
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedFileError(
            f"checkpoint {directory} cannot be read: {one_line(error)}"
        ) from error
    if isinstance(config, dict) and "auto_map" in config:
        logger.warning(
            "checkpoint %s names code of its own (auto_map): it is not run; the model of type %s "
            "from transformers is used",
            directory,
            config.get("model_type"),
        )


def _check_same_shapes(directory: Path, model: "PreTrainedModel", like: "PreTrainedModel") -> None:
    found = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    wanted = {name: tuple(weight.shape) for name, weight in like.state_dict().items()}
    for name in {**wanted, **found}:
        if found.get(name) != wanted.get(name):
            raise UserError(
                f"checkpoint {directory} is of another model: {name} is "
                f"{found.get(name, 'missing')}, wanted {wanted.get(name, 'no such weight')}"
            )
