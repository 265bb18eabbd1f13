"""Rows of different lengths one after another in a single row, without padding."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from wavalign_fast.errors import UserError
from wavalign_fast.models.attention import NO_MASK, TAKES_BORDERS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Attention is the only place where a position may look at others: a convolution or a recurrence
# over the row would carry one sequence into the next.
PACKABLE_LAYERS = {"full_attention", "sliding_attention"}


@dataclass(frozen=True)
class PackedRows:
    """R rows as one row of T ids; a row attends to itself alone."""

    ids: Tensor
    """int64 [1, T]."""
    position_ids: Tensor
    """int64 [1, T]; every row starts at 0, which is where attention tells rows apart."""
    borders: Tensor
    """int32 [R + 1]; row r is ``ids[0, borders[r]:borders[r + 1]]``."""
    longest: int
    """Length of the longest row."""

    @classmethod
    def of(cls, rows: Sequence[Tensor]) -> "PackedRows":
        """Packs rows of ids, each int64 [L_r] with L_r at least 1, on the rows' device.

        Raises:
            UserError: there is no row, or a row is empty or not a vector.
        """
        shapes = [tuple(row.shape) for row in rows]
        bad = [shape for shape in shapes if len(shape) != 1 or shape[0] == 0]
        if bad or not shapes:
            seen = f"the shape {bad[0]}" if bad else "no row"
            raise UserError(f"packed rows: got {seen}, want rows of at least one id, [L]")
        lengths = torch.tensor([length for (length,) in shapes])
        starts = lengths.cumsum(0) - lengths
        position_ids = torch.arange(int(lengths.sum())) - starts.repeat_interleave(lengths)
        borders = torch.cat([starts, lengths.sum()[None]]).to(torch.int32)
        ids = torch.cat(list(rows))
        return cls(
            ids=ids[None],
            position_ids=position_ids[None].to(ids.device),
            borders=borders.to(ids.device),
            longest=int(lengths.max()),
        )

    def to(self, device: torch.device, *, non_blocking: bool = False) -> "PackedRows":
        """Returns the rows on ``device``."""
        return PackedRows(
            ids=self.ids.to(device, non_blocking=non_blocking),
            position_ids=self.position_ids.to(device, non_blocking=non_blocking),
            borders=self.borders.to(device, non_blocking=non_blocking),
            longest=self.longest,
        )

    def model_arguments(self, model: "PreTrainedModel") -> dict[str, Any]:
        """Returns the keyword arguments with which the backbone of ``model`` keeps rows apart.

        ``sdpa``, ``eager`` and ``flex_attention`` build a block-diagonal mask from the positions
        alone; given a mask, they would let rows see each other. The others take the borders.

        Raises:
            UserError: the model has layers that carry one row into the next.
        """
        config = model.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ()) - PACKABLE_LAYERS
        if kinds:
            raise UserError(
                f"packed rows: {type(model).__name__} has layers of {sorted(kinds)}, wanted only "
                f"{sorted(PACKABLE_LAYERS)}: others carry a row into the next one"
            )
        arguments: dict[str, Any] = {"input_ids": self.ids, "position_ids": self.position_ids}
        attention = config._attn_implementation
        if attention in TAKES_BORDERS:
            arguments |= {"cu_seq_lens_q": self.borders, "cu_seq_lens_k": self.borders}
            arguments |= {"max_length_q": self.longest, "max_length_k": self.longest}
        if attention == "varlen":
            arguments["attention_mask"] = NO_MASK.to(self.ids.device)
        return arguments
