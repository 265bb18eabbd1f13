"""Sums and means over ragged rows of a flat table."""

import torch

MOST_ROWS = 2**24
"""There is a table with an entry for each row, so an index far off would take all memory."""


def row_sums(values: torch.Tensor, row: torch.Tensor, count: int) -> torch.Tensor:
    """Sum of ``values`` [T] in each of ``count`` rows; ``row`` [T] is -1 for positions in none."""
    slot = torch.where(row < 0, count, row)
    return values.new_zeros(count + 1).index_add(0, slot, values)[:count]


def at_positions(table: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
    """``table[row]`` [T] of a table with an entry a row; 0 for positions in none."""
    return torch.cat([table, table.new_zeros(1)])[row]  # row -1 reads the extra element


def row_means(
    values: torch.Tensor, weights: torch.Tensor, row: torch.Tensor, count: int
) -> torch.Tensor:
    """Weighted mean of ``values`` [T] over each of ``count`` rows; 0 for a row without a weight.

    A weight of 0 leaves its position out, whatever its value.
    """
    return row_sums(_weighed(shares(weights, row, count), values), row, count)


def weighted_sum(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Sum of ``weights · values`` over the positions; a weight of 0 leaves its position out."""
    return _weighed(weights, values).sum(-1)


def rows_with_weight(weights: torch.Tensor, row: torch.Tensor, count: int) -> torch.Tensor:
    """How many of ``count`` rows have a weight above 0, 0-d."""
    return (row_sums(weights, row, count) > 0).sum()


def shares(weights: torch.Tensor, row: torch.Tensor, count: int) -> torch.Tensor:
    """The part of each position in its row's mean, [T]."""
    floor = row_sums(weights, row, count).clamp(min=1e-6)
    return weights / torch.cat([floor, floor.new_ones(1)])[row]


def _weighed(weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """0 · NaN is NaN, and so is its gradient: a weight of 0 must not multiply."""
    return (weights * values).masked_fill_(weights <= 0, 0.0)
