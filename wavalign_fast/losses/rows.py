"""Means over ragged rows of a flat table."""

import torch


def row_sums(values: torch.Tensor, row: torch.Tensor, count: int) -> torch.Tensor:
    """Sum of ``values`` [T] in each of ``count`` rows; ``row`` [T] is -1 for positions in none."""
    slot = torch.where(row < 0, count, row)
    return values.new_zeros(count + 1).index_add(0, slot, values)[:count]


def row_shares(weights: torch.Tensor, row: torch.Tensor, sums: torch.Tensor) -> torch.Tensor:
    """``weights / Σ weights of the row``: a sum over positions becomes a sum of row means."""
    floor = torch.cat([sums, sums.new_ones(1)]).clamp(min=1e-6)  # index -1 is the extra element
    return weights / floor[row]
