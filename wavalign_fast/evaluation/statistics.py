"""Means with bootstrap intervals. The resamples depend on the numbers alone, not on a seed.

A statistic is a mean of ratios: over columns k the mean of Σ numerator_k / Σ denominator_k, sums
over the records. One column with denominators 1 is a plain mean. The four columns of IFEval are its
accuracies by prompt and by instruction, strict and loose.
"""

import hashlib
import struct
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

RESAMPLES = 2000
LEVEL = 0.95
CHUNK = 1 << 22
"""Most numbers that a pass over resamples holds."""


class Sample(NamedTuple):
    """What a record adds to its category: the same number of columns for all of them."""

    numerators: tuple[float, ...]
    denominators: tuple[float, ...]


class Estimate(NamedTuple):
    """A statistic with its 95 % percentile interval."""

    value: float
    low: float
    high: float


def plain(value: float) -> Sample:
    """Returns the sample of a record that has one score."""
    return Sample((value,), (1.0,))


def statistic(samples: Sequence[Sample]) -> float:
    """Returns the statistic of at least one record."""
    return _statistic(_table(samples))


def estimate(samples: Sequence[Sample]) -> Estimate | None:
    """Returns the statistic of records in any order; ``None`` without records."""
    return combined([samples])


def combined(groups: Sequence[Sequence[Sample]]) -> Estimate | None:
    """Returns the mean of the statistics of several groups; ``None`` if one has no records.

    Each group is resampled on its own, as the records of other categories are other records.
    """
    if not groups or not all(groups):
        return None
    tables = [_table(sorted(group)) for group in groups]
    draws = torch.stack([_resampled(table) for table in tables]).mean(0)
    return _with_interval(sum(_statistic(table) for table in tables) / len(tables), draws)


def paired(groups: Sequence[Sequence[tuple[Sample, Sample]]]) -> Estimate | None:
    """Returns the mean over groups of (second − first); ``None`` if a group has no pairs.

    A resample draws pairs, so what both have in common cancels.
    """
    if not groups or not all(groups):
        return None
    values, draws = 0.0, torch.zeros(RESAMPLES, dtype=torch.float64)
    for group in groups:
        ordered = sorted(group)
        first, second = (_table([pair[side] for pair in ordered]) for side in (0, 1))
        seed = _seed(torch.cat([first, second]))
        values += _statistic(second) - _statistic(first)
        draws += _resampled(second, seed) - _resampled(first, seed)
    return _with_interval(values / len(groups), draws / len(groups))


def _table(samples: Sequence[Sample]) -> Tensor:
    """Returns float64 [2, N, K]: numerators and denominators."""
    if len({len(sample.numerators) for sample in samples}) != 1:
        raise ValueError("records of one group have other numbers of columns, wanted the same")
    return torch.tensor(
        [[sample.numerators for sample in samples], [sample.denominators for sample in samples]],
        dtype=torch.float64,
    )


def _statistic(table: Tensor) -> float:
    numerators, denominators = table.sum(1)
    return float((numerators / denominators).mean())


def _resampled(table: Tensor, seed: int | None = None) -> Tensor:
    """Returns the statistic of each resample, float64 [RESAMPLES]."""
    count = table.shape[1]
    generator = torch.Generator().manual_seed(_seed(table) if seed is None else seed)
    step = max(1, CHUNK // (count * table.shape[2] * 2))
    found = []
    for start in range(0, RESAMPLES, step):
        rows = min(step, RESAMPLES - start)
        picked = torch.randint(count, (rows, count), generator=generator)
        numerators, denominators = table[:, picked].sum(2)  # [rows, K] each
        found.append((numerators / denominators).mean(1))
    return torch.cat(found)


def _seed(table: Tensor) -> int:
    """Returns a seed that is a function of the numbers."""
    numbers = table.flatten().tolist()
    digest = hashlib.sha256(struct.pack(f"<{len(numbers)}d", *numbers)).digest()
    return int.from_bytes(digest[:7], "little")


def _with_interval(value: float, draws: Tensor) -> Estimate:
    tail = (1 - LEVEL) / 2
    low, high = torch.quantile(draws, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Estimate(value, low, high)
