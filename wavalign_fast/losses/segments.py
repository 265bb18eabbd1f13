"""Sums and means over the segments of a flat table: the tokens of a rollout, of a prompt, ...

``segment`` [T] int64 names the segment of each position, in [0, count); -1 is none. A segment's
positions need not lie side by side.
"""

import torch

MAX_SEGMENTS = 2**24
"""Every segment has an entry in a table, so an index far too large would exhaust the memory."""


def segment_sums(values: torch.Tensor, segment: torch.Tensor, count: int) -> torch.Tensor:
    """Sum of ``values`` [T] over each of ``count`` segments."""
    slot = torch.where(segment < 0, count, segment)
    return values.new_zeros(count + 1).index_add(0, slot, values)[:count]


def at_positions(table: torch.Tensor, segment: torch.Tensor) -> torch.Tensor:
    """``table[segment]`` [T] of a table [count]; 0 for positions in no segment."""
    return torch.cat([table, table.new_zeros(1)])[segment]  # -1 reads the extra element


def segment_means(
    values: torch.Tensor, weights: torch.Tensor, segment: torch.Tensor, count: int
) -> torch.Tensor:
    """Weighted mean of ``values`` [T] over each of ``count`` segments; 0 without any weight.

    A weight of 0 leaves its position out, whatever its value.
    """
    weighted = _weighted(mean_weights(weights, segment, count), values)
    return segment_sums(weighted, segment, count)


def weighted_sum(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Sum of ``weights · values`` over the positions; a weight of 0 leaves its position out."""
    return _weighted(weights, values).sum(-1)


def segments_with_weight(weights: torch.Tensor, segment: torch.Tensor, count: int) -> torch.Tensor:
    """How many of ``count`` segments have a weight above 0, 0-d."""
    return (segment_sums(weights, segment, count) > 0).sum()


def mean_weights(weights: torch.Tensor, segment: torch.Tensor, count: int) -> torch.Tensor:
    """``w / max(Σ w, 1e-6)`` [T] over each segment: summed with these, values are its mean.

    A position in no segment keeps its weight.
    """
    floor = segment_sums(weights, segment, count).clamp(min=1e-6)
    return weights / torch.cat([floor, floor.new_ones(1)])[segment]


def _weighted(weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """``weights · values``, and 0 where the weight is: 0 · NaN is NaN, and so is its gradient."""
    return (weights * values).masked_fill_(weights <= 0, 0.0)
