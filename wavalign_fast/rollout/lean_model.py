"""The weights of a Llama, Qwen2 or Qwen3, laid out for decoding on the CPU."""

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from wavalign_fast.ops.rollout import linear_is_fast
from wavalign_fast.rollout.weights import base_of, merged_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FAMILIES = ("llama", "qwen2", "qwen3")
ROPE_TYPES = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings whose angles depend on the position alone."""

TRUSTED = ("torch.nn.", "transformers.activations.", "peft.")
"""Where the modules of a model may come from, beside its family's own file."""

LINEARS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
NORMS = ("input_layernorm.weight", "post_attention_layernorm.weight")


class Linear(NamedTuple):
    """One matrix of a layer, or several that take the same rows."""

    weights: list[Tensor]
    biases: list[Tensor | None]

    def __call__(self, rows: Tensor) -> Tensor:
        """The products [N, F] of all matrices, side by side."""
        if linear_is_fast(rows.dtype):
            return torch.ops.wavalign_fast.decode_linear(rows, self.weights, self.biases)
        (weight,), (bias,) = self
        return F.linear(rows, weight, bias)


class LeanLayer(NamedTuple):
    """A decoder layer; q and k are normalised by head where there are weights for it."""

    first_norm: Tensor
    qkv: Linear
    q_norm: Tensor | None
    k_norm: Tensor | None
    out: Linear
    second_norm: Tensor
    gate_up: Linear
    down: Linear


class LeanModel(NamedTuple):
    """Everything that a decode needs of a model."""

    embedding: Tensor
    """[V, H]."""
    layers: list[LeanLayer]
    norm: Tensor
    head: Linear
    eps: float
    scale: float
    """Of the products of queries and keys."""
    rotary: Any
    """The model's module of rotary angles."""


def lean_model(model: "PreTrainedModel") -> LeanModel | None:
    """Lays out a model's weights of now, or returns ``None`` for a model that is not known.

    A known model is of transformers' own classes, without hooks, sliding windows or weights beside
    the expected ones. Its adapters are merged. Where torch's GEMMs are faster than
    ``decode_linear``, what takes the same rows becomes one matrix, which copies about two thirds of
    the weights.
    """
    base = base_of(model)
    if not _is_known(base):
        return None
    weights = merged_weights(model)
    layers = base.config.num_hidden_layers
    if _unexpected(set(weights), layers):
        return None
    config = base.config
    return LeanModel(
        embedding=weights["model.embed_tokens.weight"],
        layers=[_layer(weights, f"model.layers.{index}.") for index in range(layers)],
        norm=weights["model.norm.weight"],
        head=_linear(weights, "lm_head"),
        eps=config.rms_norm_eps,
        scale=base.model.layers[0].self_attn.scaling,
        rotary=base.model.rotary_emb,
    )


def _is_known(base: Any) -> bool:
    config, kind = base.config, base.config.model_type
    if kind not in FAMILIES or config.hidden_act != "silu":
        return False
    if set(getattr(config, "layer_types", None) or ()) - {"full_attention"}:
        return False
    if config.rope_parameters.get("rope_type") not in ROPE_TYPES:
        return False
    own = (*TRUSTED, f"transformers.models.{kind}.")
    return all(
        f"{type(module).__module__}.".startswith(own)
        and not (module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))
        for module in base.modules()
    )


def _unexpected(names: set[str], layers: int) -> set[str]:
    """Names that a decode would leave out, or would not find."""
    needed = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    optional = {"lm_head.bias"}
    for index in range(layers):
        prefix = f"model.layers.{index}."
        needed |= {prefix + name for name in NORMS}
        needed |= {f"{prefix}{name}.weight" for name in LINEARS}
        optional |= {f"{prefix}{name}.bias" for name in LINEARS}
        optional |= {f"{prefix}self_attn.{name}_norm.weight" for name in "qk"}
    return (names - needed - optional) | (needed - names)


def _layer(weights: dict[str, Tensor], prefix: str) -> LeanLayer:
    q, k, v, out, gate, up, down = (prefix + name for name in LINEARS)
    first, second = (weights[prefix + name] for name in NORMS)
    return LeanLayer(
        first_norm=first,
        qkv=_linear(weights, q, k, v),
        q_norm=weights.get(f"{prefix}self_attn.q_norm.weight"),
        k_norm=weights.get(f"{prefix}self_attn.k_norm.weight"),
        out=_linear(weights, out),
        second_norm=second,
        gate_up=_linear(weights, gate, up),
        down=_linear(weights, down),
    )


def _linear(weights: dict[str, Tensor], *names: str) -> Linear:
    parts = [weights[f"{name}.weight"].contiguous() for name in names]
    biases = [weights.get(f"{name}.bias") for name in names]
    if len(names) == 1 or linear_is_fast(parts[0].dtype):
        return Linear(parts, biases)
    bias = None
    if any(one is not None for one in biases):
        bias = torch.cat(
            [
                part.new_zeros(len(part)) if one is None else one
                for part, one in zip(parts, biases, strict=True)
            ]
        )
    return Linear([torch.cat(parts)], [bias])
