"""Means over ragged rows of a flat table."""

import torch


def row_sums(values: torch.Tensor, row: torch.Tensor, count: int) -> torch.Tensor:
    """Sum of ``values`` [T] in each of ``count`` rows; ``row`` [T] is -1 for positions in none."""
    slot = torch.where(row < 0, count, row)
    return values.new_zeros(count + 1).index_add(0, slot, values)[:count]


def sum_of_row_means(
    values: torch.Tensor, weights: torch.Tensor, row: torch.Tensor, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Σ over rows of the row's weighted mean of ``values`` [T], and how many rows have a weight.

    A weight of 0 leaves its position out, whatever its value.
    """
    sums = row_sums(weights, row, count)
    floor = torch.cat([sums, sums.new_ones(1)]).clamp(min=1e-6)  # row -1 reads the extra element
    total = torch.where(weights > 0, weights / floor[row] * values, 0.0).sum()
    return total, (sums > 0).sum()
