"""Whole weights of a model: adapters merged in, shards of all ranks gathered."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from wavalign_fast.models.head import is_adapted, output_head
from wavalign_fast.ops.sharded.exchange import gathered

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BUCKET_BYTES = 256 * 2**20
"""Whole weights that travel in one collective. It bounds the memory of a gather."""


def is_sharded(weight: Tensor) -> bool:
    """Whether a weight is a DTensor."""
    return hasattr(weight, "placements")


def base_of(model: Any) -> "PreTrainedModel":
    """The transformers model inside peft's wrapper, or the model itself."""
    inside = getattr(model, "get_base_model", None)
    base: PreTrainedModel = model if inside is None else inside()
    return base


@torch.no_grad()
def merged_weights(model: "PreTrainedModel") -> dict[str, Tensor]:
    """Returns the weights under the names of a model without adapters.

    A LoRA layer becomes ``W + Σ scaling · B A``, a new tensor; every other weight is the model's
    own. The weight of a sharded layer is a DTensor.
    """
    found: dict[str, Tensor] = {}
    inside = "\0"  # the name of the adapted module whose parts are being visited, with a dot
    for name, module in base_of(model).named_modules():
        if name.startswith(inside):
            continue
        parts: dict[str, Any] = module._parameters
        if is_adapted(module):
            head = output_head(module)
            inside, parts = f"{name}.", {"weight": head.weight, "bias": head.bias}
        prefix = f"{name}." if name else ""
        found |= {prefix + leaf: weight for leaf, weight in parts.items() if weight is not None}
    return found


def resharded(root: nn.Module) -> None:
    """Makes the modules hold their shards again: a root keeps its weights whole after a forward."""
    for module in root.modules():
        reshard = getattr(module, "reshard", None)
        if callable(reshard):
            reshard()


@torch.no_grad()
def whole_tensors(weights: Sequence[Tensor], dtypes: Sequence[torch.dtype]) -> Iterator[Tensor]:
    """Yields each weight whole, in its dtype. Every rank must ask for the same weights in order.

    DTensors sharded along their rows travel together, cast before they are sent: one all-gather
    for up to ``BUCKET_BYTES``. Other DTensors take ``full_tensor()``. A weight that is no DTensor
    is yielded without a copy if its dtype is right.
    """
    for bucket in _buckets(weights, dtypes):
        weight, dtype = bucket[0]
        if _route(weight) is not None:
            yield from _whole_of_shards([it for it, _ in bucket], dtype)
            continue
        whole: Tensor = weight.full_tensor() if is_sharded(weight) else weight  # type: ignore[attr-defined]
        yield whole.to(dtype)


def _buckets(
    weights: Sequence[Tensor], dtypes: Sequence[torch.dtype]
) -> Iterator[list[tuple[Tensor, torch.dtype]]]:
    """Splits the weights, in order, into those that travel together."""
    bucket: list[tuple[Tensor, torch.dtype]] = []
    kind: object = None
    room = 0
    for weight, dtype in zip(weights, dtypes, strict=True):
        route = _route(weight)
        size = weight.numel() * dtype.itemsize
        if bucket and (route is None or kind != (route, dtype) or size > room):
            yield bucket
            bucket = []
        if not bucket:
            kind, room = (route, dtype), BUCKET_BYTES
        bucket.append((weight, dtype))
        room -= size
    if bucket:
        yield bucket


def _route(weight: Any) -> tuple[Any, int] | None:
    """The mesh and its dimension over which a weight's rows are sharded, and nothing else is."""
    if not is_sharded(weight):
        return None
    places = weight.placements
    cut = [axis for axis, place in enumerate(places) if not place.is_replicate()]
    if len(cut) != 1 or not places[cut[0]].is_shard(0):
        return None
    # A placement of another kind cuts the rows in another way, under the same test.
    return (weight.device_mesh, cut[0]) if type(places[cut[0]]).__name__ == "Shard" else None


def _whole_of_shards(weights: Sequence[Any], dtype: torch.dtype) -> Iterator[Tensor]:
    """Whole tensors of DTensors of one route, by one all-gather."""
    mesh, axis = _route(weights[0])  # type: ignore[misc]
    ranks = mesh.size(axis)
    # Shards are as high as the first one, the rest of the rows is on the last ranks.
    sizes = [-(-it.shape[0] // ranks) * (it.numel() // max(it.shape[0], 1)) for it in weights]
    mine = weights[0].to_local().new_zeros(sum(sizes), dtype=dtype)
    for part, weight in zip(mine.split(sizes), weights, strict=True):
        local = weight.to_local().flatten()
        part[: len(local)] = local
    parts = gathered(mine, mesh.get_group(axis)).view(ranks, -1).split(sizes, 1)
    for part, weight in zip(parts, weights, strict=True):
        yield part.flatten()[: weight.numel()].view(weight.shape)
