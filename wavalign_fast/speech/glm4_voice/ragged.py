"""Sequences of several lengths in one batch, each computed as if it were alone.

A batch is [B, C, T] with the true lengths beside it. What lies beyond an item's end is arbitrary
between layers; ``clear`` makes it 0 before a layer that would mix it in, as the padding of a
convolution is 0.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Lengths:
    """Lengths of the items of a batch."""

    def __init__(self, counts: list[int], device: torch.device) -> None:
        self.counts = counts
        self.longest = max(counts)
        self.device = device
        self.mask: Tensor | None = None
        """Bool [B, 1, T], True up to each item's end; ``None`` if all lengths are equal."""
        if min(counts) != self.longest:
            ends = torch.tensor(counts, device=device)
            self.mask = (torch.arange(self.longest, device=device) < ends[:, None])[:, None]
            self._beyond = ~self.mask

    def map(self, change: Callable[[int], int]) -> "Lengths":
        """Returns the lengths after a layer that changes each of them so."""
        return Lengths([change(count) for count in self.counts], self.device)

    def clear(self, x: Tensor) -> Tensor:
        """Returns [B, C, T] with 0 beyond each item's end."""
        return x if self.mask is None else x.masked_fill(self._beyond, 0.0)

    def group_norm(self, norm: nn.GroupNorm, x: Tensor) -> Tensor:
        """Normalises each item over its own length."""
        if self.mask is None:
            return torch.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
        parts = (len(x), norm.num_groups, -1, x.shape[-1])
        grouped, beyond = x.view(parts), self._beyond[:, None]
        values = torch.tensor(self.counts, device=x.device)[:, None, None, None] * grouped.shape[2]
        mean = grouped.masked_fill(beyond, 0.0).sum((2, 3), keepdim=True) / values
        centred = (grouped - mean).masked_fill(beyond, 0.0)
        variance = centred.square().sum((2, 3), keepdim=True) / values
        normalised = (centred * (variance + norm.eps).rsqrt()).view_as(x)
        return torch.addcmul(norm.bias[:, None], normalised, norm.weight[:, None])

    def cut(self, x: Tensor) -> list[Tensor]:
        """Returns the items of [B, ..., T], each up to its end."""
        return [item[..., :count] for item, count in zip(x, self.counts, strict=True)]
