"""Chooses the attention of a model by name."""

from typing import TYPE_CHECKING

from wavalign_fast.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def set_attention(model: "PreTrainedModel", name: str) -> None:
    """Makes the model compute attention by ``name``, as transformers registers it.

    Raises:
        UserError: the model has an attention of its own, or ``name`` needs a missing package.
    """
    if not model._can_set_attn_implementation():
        raise UserError(
            f"attention {name!r}: {type(model).__name__} computes attention by code of its own, "
            "wanted a model that takes transformers' AttentionInterface"
        )
    try:
        model.set_attn_implementation(name)
    except (ImportError, ValueError) as error:
        raise UserError(f"attention {name!r} cannot be used: {error}") from error
