"""Decodes with any causal LM of transformers, by its own cache and attention."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wavalign_fast.rollout.prefill import Prefix

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PlainDecode:
    """The rows that are being decoded: their cache, mask and positions."""

    drop_share = 0.25
    """Share of ended rows at which they are dropped, which copies the whole cache."""

    def __init__(self, model: "PreTrainedModel", prefix: Prefix, group_size: int) -> None:
        if group_size > 1:
            prefix.cache.batch_repeat_interleave(group_size)
        self.model = model
        self.cache, self.argument = prefix.cache, prefix.argument
        self.real = prefix.real.repeat_interleave(group_size, 0)  # bool [N, L]
        self.positions = prefix.lengths.repeat_interleave(group_size)  # [N], of the next token
        self.padded = not bool(self.real.all())

    def logits(self, tokens: Tensor) -> Tensor:
        """Feeds one token per row, [N], and returns the next logits, [N, V]."""
        mask = None
        if self.padded:
            seen = self.cache.get_seq_length() + 1 - self.real.shape[1]
            mask = torch.cat([self.real, self.real.new_ones(len(self.real), seen)], 1)
        out = self.model(
            tokens[:, None],
            attention_mask=mask,
            position_ids=self.positions[:, None],
            use_cache=True,
            **self.argument,
        )
        self.positions = self.positions + 1
        logits: Tensor = out.logits[:, -1]
        return logits

    def keep(self, kept: Tensor) -> None:
        """Keeps only the rows ``kept`` (indices of current rows)."""
        self.cache.batch_select_indices(kept)
        self.real, self.positions = self.real[kept], self.positions[kept]
