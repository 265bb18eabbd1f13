"""Runs the prompts through a model, each once, before their completions are decoded."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from wavalign_fast.models import EmbeddedBlock, PromptEmbeddings
from wavalign_fast.models.transformers_names import cache_argument

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel


class Prefix(NamedTuple):
    """What B prompts have left behind, padded on the left to L columns."""

    cache: "DynamicCache"
    """Their keys and values."""
    argument: Mapping[str, Any]
    """The cache, under the model's name for it."""
    real: Tensor
    """bool [B, L]; padding is never attended to."""
    lengths: Tensor
    """int64 [B], the position of the next token."""
    logits: Tensor
    """[B, V], of the next token."""


def prefill(
    model: "PreTrainedModel",
    prompts: Sequence[Sequence[int]],
    pad_id: int,
    prompt_embeddings: PromptEmbeddings | None = None,
) -> Prefix:
    """Runs each prompt once."""
    from transformers import DynamicCache

    ids, real = _left_pad(prompts, pad_id)
    filled = ids if prompt_embeddings is None else prompt_embeddings.fill(ids)
    filled, real = filled.to(model.device), real.to(model.device)
    inputs: dict[str, Any] = {"input_ids": filled}
    if isinstance(filled, EmbeddedBlock):
        inputs = {"inputs_embeds": filled.embedded(model)}
    positions = (real.cumsum(1) - 1).clamp_(min=0)
    cache = DynamicCache(config=model.config)
    argument = cache_argument(model, cache)
    out = model(
        **inputs,
        attention_mask=real,
        position_ids=positions,
        use_cache=True,
        logits_to_keep=1,
        **argument,
    )
    return Prefix(cache, argument, real, positions[:, -1] + 1, out.logits[:, -1])


def _left_pad(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Returns prompt ids [B, L], padded on the left, and a mask of the real ids, bool [B, L]."""
    length = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (length - len(p)) + list(p) for p in prompts])
    lengths = torch.tensor([len(p) for p in prompts])
    real = torch.arange(length) >= (length - lengths)[:, None]
    return ids, real
