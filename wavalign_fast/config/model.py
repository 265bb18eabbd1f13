"""The group ``model``: which weights are trained, in which dtypes, and by which code."""

from typing import Annotated, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from wavalign_fast.config.group import Group

Dtype = Literal["float32", "bfloat16"]


class ModelConfig(Group):
    """The weights that are trained, and how their forward and backward pass is computed."""

    path: Annotated[str, Field(min_length=1)] | None = None
    """Directory of a transformers causal LM to start from; by default the recipe's own model."""
    dtype: Dtype = "float32"
    """Dtype of the stored weights, which the optimizer updates."""
    compute_dtype: Dtype | None = None
    """Dtype of the forward and backward pass and of rollouts; by default that of the weights.
    ``bfloat16`` over float32 weights is what large models are trained in."""
    attention: Literal["sdpa", "eager", "varlen", "flex_attention", "flash_attention_2"] = "sdpa"
    """``sdpa`` is torch's fused one, ``eager`` its definition; ``flex_attention`` trains on a GPU
    only. ``varlen`` and ``flash_attention_2`` (package flash-attn) pack the rows of a block without
    padding; ``varlen`` is torch's own kernel on a GPU, one causal call a row on a CPU."""
    activation_checkpointing: bool = False
    """Recompute the activations of each layer in the backward pass: less memory, more time."""
    compile: bool = False
    """Compile each layer with torch.compile in training. Costs seconds once, at the first step."""

    @model_validator(mode="after")
    def _computes_with_the_digits_there_are(self) -> Self:
        if self.dtype == "bfloat16" and self.compute_dtype == "float32":
            raise ValueError(
                "compute_dtype float32 given for weights stored in bfloat16, wanted bfloat16: "
                "the digits are gone"
            )
        return self
