"""The group ``model``: which weights are trained, in which dtypes, and by which code."""

from typing import Annotated, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from wavalign_fast.config.group import Group

Dtype = Literal["float32", "bfloat16"]
MOST_RANK = 1_000_000


class LoraConfig(Group):
    """Adapters of low rank beside frozen weights (package peft); without dropout."""

    rank: Annotated[int, Field(ge=0, le=MOST_RANK)] = 0
    """Rank of every adapter; they are float32 and alone are trained. 0 = none: all weights are."""
    alpha: Annotated[int, Field(ge=1, le=MOST_RANK)] = 16
    """An adapter adds alpha/rank · B A to its weight."""
    targets: list[Annotated[str, Field(min_length=1)]] = Field(default=[])
    """Names of the linear layers inside the decoder layers that get one, such as q_proj; by default
    all of them."""
    head: bool = False
    """Whether the output head gets one, too."""

    @model_validator(mode="after")
    def _has_a_rank(self) -> Self:
        given = [
            name
            for name, key in type(self).model_fields.items()
            if name != "rank" and getattr(self, name) != key.default
        ]
        if self.rank == 0 and given:
            raise ValueError(f"{given[0]} given with rank 0, wanted a rank of 1 or more")
        return self


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
    kernels: Literal["torch", "liger"] = "torch"
    """Norms, rotary embedding and SwiGLU by transformers' plain torch, or by the Triton kernels of
    ``liger`` (package liger-kernel; Llama, Mistral, Qwen2 and Qwen3 on a GPU)."""
    lora: LoraConfig = LoraConfig()
    """Train adapters instead of the weights."""

    @model_validator(mode="after")
    def _computes_with_the_digits_there_are(self) -> Self:
        if self.dtype == "bfloat16" and self.compute_dtype == "float32":
            raise ValueError(
                "compute_dtype float32 given for weights stored in bfloat16, wanted bfloat16: "
                "the digits are gone"
            )
        return self

    @model_validator(mode="after")
    def _fuses_once(self) -> Self:
        if self.kernels == "liger" and self.compile:
            raise ValueError(
                "kernels liger given with compile true, wanted one of the two: torch.compile fuses "
                "norms, rotary embedding and SwiGLU itself"
            )
        return self
