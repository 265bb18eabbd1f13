"""Splits Hugging Face causal LMs into a backbone with hidden states and an output head.

The head is never called: the fused losses take the hidden states and the head's weight, and the
logits are never built.
"""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from wavalign_fast.errors import UserError
from wavalign_fast.losses import ModalityLayout
from wavalign_fast.models.head import output_head
from wavalign_fast.models.packing import PackedRows
from wavalign_fast.models.prompt_embeddings import EmbeddedBlock

if TYPE_CHECKING:
    from transformers import PreTrainedModel


Block = Tensor | PackedRows | EmbeddedBlock


def hidden_states(model: "PreTrainedModel", blocks: Sequence[Block]) -> Tensor:
    """Computes last hidden states [T, H] of blocks of rows, in the order of their positions.

    A block is right-padded ids int64 [R_b, L_b] with R_b·L_b positions, or packed rows; either may
    have vectors in place of some ids. Calls the model once per block, without an attention mask: in
    a causal model a token never attends to the padding on its right, and without a mask attention
    takes its fast causal path.

    Raises:
        UserError: packed rows for a model that cannot keep them apart.
    """
    if not blocks:
        return model.get_input_embeddings().weight[:0]
    return torch.cat([_last_hidden_state(model, block).flatten(0, 1) for block in blocks])


def _last_hidden_state(model: "PreTrainedModel", block: Block) -> Tensor:
    rows = block.block if isinstance(block, EmbeddedBlock) else block
    inputs = {"input_ids": rows} if isinstance(rows, Tensor) else rows.model_arguments(model)
    if isinstance(block, EmbeddedBlock):
        del inputs["input_ids"]
        inputs["inputs_embeds"] = block.embedded(model)
    return model.base_model(**inputs, use_cache=False).last_hidden_state


def check_vocabulary(model: "PreTrainedModel", layout: ModalityLayout) -> None:
    """Raises ``UserError`` unless the head has as many rows as the layout has ids."""
    rows = output_head(model).weight.shape[0]
    if rows != layout.vocab_size:
        raise UserError(
            f"model vocabulary: {rows} rows in the head, wanted {layout.vocab_size}, the layout's"
        )


def frozen_copy(model: "PreTrainedModel", dtype: torch.dtype | None = None) -> "PreTrainedModel":
    """Returns a copy in eval mode without gradients, the reference of the KL.

    Args:
        dtype: dtype of its weights, by default that of the model's. Buffers keep theirs, as in
            ``cast_weights``. No copy of the weights in the model's dtype is made on the way.
    """
    copies: dict[int, Any] = {}  # deepcopy takes what it finds here
    for weight in model.parameters():
        value = weight.detach().to(dtype or weight.dtype, copy=True)
        copies[id(weight)] = nn.Parameter(value, requires_grad=False)
    return copy.deepcopy(model, copies).eval()
