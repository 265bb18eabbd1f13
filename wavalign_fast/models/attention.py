"""Chooses the attention of a model by name, among them ``varlen``, made for packed rows.

``varlen`` builds no mask. On a GPU it is torch's own kernel over all rows at once, elsewhere one
causal call per row. Without packed rows it is transformers' ``sdpa``.
"""

from typing import TYPE_CHECKING

import torch

from wavalign_fast.errors import UserError, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TAKES_BORDERS = {"varlen", "flash_attention_2"}
"""Attentions that are told where packed rows begin; the others see it in the positions."""

NO_MASK = torch.empty(1, 1, 0, 0, dtype=torch.bool)
"""Passed as the mask of packed rows: transformers hands a mask of four dimensions on as it is,
where it would build one of T × T from the positions. ``varlen`` takes no other mask with packed
rows, and refuses this one without their borders."""


def set_attention(model: "PreTrainedModel", name: str) -> None:
    """Makes the model compute attention by ``name``: ``varlen``, or as transformers registers it.

    Raises:
        UserError: the model has an attention of its own, or ``name`` needs a package or a device
            that is not there.
    """
    if not model._can_set_attn_implementation():
        raise UserError(
            f"{name!r} given, but {type(model).__name__} computes attention by code of its own: "
            "wanted a model that takes transformers' AttentionInterface"
        )
    if name == "flex_attention" and not torch.accelerator.is_available():
        raise UserError("'flex_attention' cannot be used here: it has no backward pass on a CPU")
    if name == "varlen":
        _register_varlen()
    try:
        model.set_attn_implementation(name)
    except (ImportError, ValueError) as error:
        raise UserError(f"{name!r} cannot be used here: {one_line(error)}") from error


def _register_varlen() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    from wavalign_fast.models.varlen import varlen

    AttentionInterface.register("varlen", varlen)
    # For rollouts, whose rows are padded: there it is sdpa.
    AttentionMaskInterface.register("varlen", sdpa_mask)
