"""The group ``model``: which weights are trained, in which dtypes, and by which code."""

from typing import Annotated, Literal

from pydantic import Field

from wavalign_fast.config.group import Group

Dtype = Literal["float32", "bfloat16"]


class ModelConfig(Group):
    """The weights that are trained, and how their forward and backward pass is computed."""

    path: Annotated[str, Field(min_length=1)] | None = None
    """Directory of a transformers causal LM to start from; by default the recipe's own model."""
    dtype: Dtype = "float32"
    """Dtype of the stored weights, which the optimizer updates."""
    attention: Literal["sdpa", "eager", "varlen", "flex_attention", "flash_attention_2"] = "sdpa"
    """``sdpa`` is torch's fused one, ``eager`` its definition, ``varlen`` torch's for packed rows;
    ``flex_attention`` trains on a GPU only, ``flash_attention_2`` needs the package flash-attn."""
    activation_checkpointing: bool = False
    """Recompute the activations of each layer in the backward pass: less memory, more time."""
    compile: bool = False
    """Compile each layer with torch.compile in training. Costs seconds once, at the first step."""
