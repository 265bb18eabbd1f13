"""Metrics as sums and counts, which add up over the parts of a step and over ranks."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True, eq=False)
class MetricTotals:
    """Sums of metrics and what they are divided by; ``+`` and ``sum`` add parts up.

    Over ranks one all-reduce adds them up, if all ranks have the same names::

        vector = totals.as_vector()
        torch.distributed.all_reduce(vector)
        metrics = totals.with_vector(vector).means()

    Args:
        sums: 0-d float64 by name.
        counts: 0-d float64 by name, of names in ``sums``. A name without a count is a plain sum,
            such as a number of tokens, or a loss that its normaliser has divided already.

    Raises:
        ValueError: a count of a name that has no sum.
    """

    sums: dict[str, torch.Tensor]
    counts: dict[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if alone := sorted(self.counts.keys() - self.sums.keys()):
            raise ValueError(f"counts: got {alone}, want names that are in sums")

    def __add__(self, other: "MetricTotals") -> "MetricTotals":
        """The totals of both parts, with the names of both.

        Raises:
            ValueError: a name has a count in one part only, so that no mean is right.
        """
        if not isinstance(other, MetricTotals):
            return NotImplemented
        common = self.sums.keys() & other.sums.keys()
        if odd := sorted(common & (self.counts.keys() ^ other.counts.keys())):
            raise ValueError(f"metrics {odd}: got a count in one part only, want it in both")
        return MetricTotals(_added(self.sums, other.sums), _added(self.counts, other.counts))

    def __radd__(self, other: Any) -> "MetricTotals":
        # `sum` starts with 0.
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def means(self) -> dict[str, torch.Tensor]:
        """``sum / count`` of each name, 0-d float64; NaN where nothing was counted."""
        return {
            name: _mean(total, self.counts[name]) if name in self.counts else total
            for name, total in self.sums.items()
        }

    def as_vector(self) -> torch.Tensor:
        """[K + C] float64: the K sums in the order of their names, then the C counts likewise."""
        values = [*_in_order(self.sums), *_in_order(self.counts)]
        return torch.stack(values) if values else torch.zeros(0, dtype=torch.float64)

    def with_vector(self, vector: torch.Tensor) -> "MetricTotals":
        """Totals of the same names with the values of ``vector``, as ``as_vector`` lays them out.

        Raises:
            ValueError: a vector of another length.
        """
        wanted = len(self.sums) + len(self.counts)
        if vector.shape != (wanted,):
            raise ValueError(f"vector: got shape {tuple(vector.shape)}, want [{wanted}]")
        sums = dict(zip(sorted(self.sums), vector, strict=False))
        counts = dict(zip(sorted(self.counts), vector[len(sums) :], strict=True))
        return MetricTotals({name: sums[name] for name in self.sums}, counts)


def _added(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    both = {name: one[name] + other[name] for name in one if name in other}
    return one | other | both


def _in_order(values: dict[str, torch.Tensor]) -> Iterable[torch.Tensor]:
    return (values[name].to(torch.float64) for name in sorted(values))


def _mean(total: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    return torch.where(count > 0, total / count, math.nan)
