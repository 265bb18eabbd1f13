"""Decodes a Llama, Qwen2 or Qwen3 on the CPU, with a few C++ calls and GEMMs a layer.

transformers' cache grows by a copy of itself at every token, repeats the prompt for every
completion of its group, and is copied again when ended rows are dropped. Here it is allocated
once, a group shares its prompt's keys and values, and a row is dropped from a list of indices. The
rest is the model's arithmetic in fewer calls: a small model spends half of its time between them.
"""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from wavalign_fast.ops.rollout import kernels_take
from wavalign_fast.rollout.lean_model import LeanModel, lean_model
from wavalign_fast.rollout.prefill import Prefix

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class _LayerCache(NamedTuple):
    """Keys and values of sampled tokens [S, kv, C, d] and of prompts [B, kv, L, d]."""

    keys: Tensor
    values: Tensor
    prefix_keys: Tensor
    prefix_values: Tensor


class LeanDecode:
    """The rows that are being decoded, with the interface of ``PlainDecode``."""

    drop_share = 0.0

    def __init__(
        self, model: LeanModel, prefix: Prefix, group_size: int, max_new_tokens: int
    ) -> None:
        self.model = model
        rows = len(prefix.real) * group_size
        self.caches = [
            _allocated(layer.keys, layer.values, rows, max_new_tokens)
            for layer in prefix.cache.layers
        ]
        self.start = (~prefix.real).sum(1)  # first column that is no padding
        self.slots = torch.arange(rows)  # row of the caches of each row that is being decoded
        self.length = 0  # sampled tokens in the caches
        self.positions = prefix.lengths.repeat_interleave(group_size)
        last = int(prefix.lengths.max()) + max_new_tokens
        # In the dtype of the model, to which it rounds the angles' cosines.
        angles = model.rotary(model.embedding[:1], torch.arange(last)[None])
        self.cos, self.sin = (part[0].float().contiguous() for part in angles)

    @classmethod
    def of(
        cls, model: "PreTrainedModel", prefix: Prefix, group_size: int, max_new_tokens: int
    ) -> "LeanDecode | None":
        """Returns a decode of this model, or ``None`` if only transformers' own code knows it."""
        from transformers.cache_utils import DynamicLayer

        layers = prefix.cache.layers
        if not all(type(layer) is DynamicLayer and kernels_take(layer.keys) for layer in layers):
            return None
        lean = lean_model(model)
        if lean is None or lean.embedding.dtype != layers[0].keys.dtype:
            return None
        return cls(lean, prefix, group_size, max_new_tokens)

    def logits(self, tokens: Tensor) -> Tensor:
        """Feeds one token per row, [N], and returns the next logits, [N, V]."""
        ops, model = torch.ops.wavalign_fast, self.model
        x = model.embedding[tokens]  # [N, H]; the sum of all layers' updates
        update = None
        for layer, cache in zip(model.layers, self.caches, strict=True):
            rows = ops.add_rms_norm_(x, update, layer.first_norm, model.eps)
            attended = ops.decode_attention(
                layer.qkv(rows),
                self.positions,
                self.cos,
                self.sin,
                layer.q_norm,
                layer.k_norm,
                model.eps,
                *cache,
                self.start,
                self.slots,
                self.length,
                model.scale,
            )
            rows = ops.add_rms_norm_(x, layer.out(attended), layer.second_norm, model.eps)
            update = layer.down(ops.silu_mul(layer.gate_up(rows)))
        self.length += 1
        self.positions = self.positions + 1
        return model.head(ops.add_rms_norm_(x, update, model.norm, model.eps))

    def keep(self, kept: Tensor) -> None:
        """Keeps only the rows ``kept`` (indices of current rows)."""
        self.positions, self.slots = self.positions[kept], self.slots[kept]


def _allocated(keys: Tensor, values: Tensor, rows: int, capacity: int) -> _LayerCache:
    shape = (rows, keys.shape[1], capacity, keys.shape[3])
    own = (keys.new_empty(shape), values.new_empty(shape))
    return _LayerCache(*own, keys.contiguous(), values.contiguous())
