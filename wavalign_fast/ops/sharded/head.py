"""A rank's slice of a head, and what FSDP2's parameter has to do with it."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from wavalign_fast.ops.inputs import check_floats, check_tensor, whole_number


@dataclass(frozen=True, eq=False, kw_only=True)
class HeadShard:
    """Rows ``[start, start + V_r)`` of a head [V, H]; the other ranks of ``group`` hold the rest.

    It takes the place of ``weight`` in ``linear_logprob`` and ``HybridObjective``. All ranks of the
    group then call together, each with positions of its own: the live rows of all ranks are
    multiplied with each slice, and the ranks exchange three numbers a row. The results are those of
    the whole head. ``bias`` beside it is the slice [V_r] of the bias.

    The losses of the ranks are parts of a sum: the gradient of the slice is that of the sum, of the
    rows of all ranks. Every rank must run the backward pass if one does, and scale its loss by the
    same factor.

    Args:
        weight: [V_r, H]; V_r may be 0.
        start: the id of its first row.
        vocab_size: V, the rows of the whole head.
        group: the ranks with the slices of one head, each id on one of them.
        height: the largest number of live rows of any rank in this call, the same on all ranks. A
            row is live unless its target is ignored; for a batch of ``HybridObjective`` it is
            ``objective.token_weights(batch).live.sum()``.

    Raises:
        ValueError: an argument that does not fit; the message has the value seen and the value
            wanted.
    """

    weight: Tensor
    start: int
    vocab_size: int
    group: Any
    height: int

    def __post_init__(self) -> None:
        check_tensor("HeadShard.weight", self.weight)
        check_floats("HeadShard.weight", self.weight)
        for name, low in (("start", 0), ("vocab_size", 1), ("height", 0)):
            whole_number(f"HeadShard.{name}", getattr(self, name), low=low)
        if self.weight.dim() != 2:
            raise ValueError(
                f"HeadShard.weight: got shape {tuple(self.weight.shape)}, want [V_r, H]"
            )
        if self.start + len(self.weight) > self.vocab_size:
            raise ValueError(
                f"HeadShard: got rows [{self.start}, {self.start + len(self.weight)}), want them "
                f"below vocab_size = {self.vocab_size}"
            )
        if not isinstance(self.group, dist.ProcessGroup):
            raise ValueError(
                f"HeadShard.group: got {type(self.group).__name__}, want a ProcessGroup of which "
                "this process is a member"
            )

    @classmethod
    def of(cls, parameter: Any, *, height: int, dtype: torch.dtype | None = None) -> "HeadShard":
        """The slice of a head [V, H] that ``fully_shard`` has sharded over the last mesh dimension.

        The weight is a part of the parameter's graph, so that the parameter gets dW, in its own
        dtype. Over the other mesh dimensions, which hold copies, ``sum_over_copies`` adds it up.

        Args:
            parameter: a DTensor.
            dtype: of the slice, by default that of the parameter.
        """
        mesh = _mesh_of("head", parameter)
        each = -(-parameter.shape[0] // mesh.size(mesh.ndim - 1))  # as torch.chunk deals
        start = mesh.get_local_rank(mesh.ndim - 1) * each
        return cls(
            weight=local_slice(parameter, dtype),
            start=min(start, parameter.shape[0]),
            vocab_size=parameter.shape[0],
            group=mesh.get_group(mesh.ndim - 1),
            height=height,
        )

    @property
    def world(self) -> int:
        """The number of slices."""
        return dist.get_world_size(self.group)

    @property
    def rank(self) -> int:
        """Which of them this one is."""
        return dist.get_rank(self.group)


def local_slice(parameter: Any, dtype: torch.dtype | None = None) -> Tensor:
    """This rank's rows of a parameter that ``fully_shard`` has sharded, differentiably.

    Args:
        parameter: a DTensor [V, ...], a head or its bias.
        dtype: of the result, by default that of the parameter.
    """
    _mesh_of("parameter", parameter)
    local: Tensor = parameter.to_local()
    return local if dtype is None else local.to(dtype)


def sum_over_copies(parameter: Any) -> None:
    """Adds up the gradient of a sharded head over the mesh dimensions that hold copies of it.

    ``fully_shard`` reduces the gradient of a unit that it has gathered. A ``HeadShard`` is never
    gathered: call this once a step, after the last backward pass, on every rank. A collective on
    every mesh dimension but the last.

    Raises:
        RuntimeError: there is no gradient.
    """
    mesh = _mesh_of("parameter", parameter)
    if parameter.grad is None:
        raise RuntimeError("sum_over_copies: got no gradient, want one from a backward pass")
    for dimension in range(mesh.ndim - 1):
        if mesh.size(dimension) > 1:
            dist.all_reduce(parameter.grad.to_local(), group=mesh.get_group(dimension))


def _mesh_of(name: str, parameter: Any) -> Any:
    """The mesh of a DTensor that is cut by rows over the last mesh dimension alone."""
    placements = getattr(parameter, "placements", None)
    if placements is None:
        raise ValueError(
            f"{name}: got a {type(parameter).__name__}, want a DTensor: fully_shard the head as a "
            "unit of its own and call this before anything gathers it"
        )
    *others, last = placements
    if not last.is_shard(0) or not all(other.is_replicate() for other in others):
        raise ValueError(
            f"{name}: got placements {placements}, want Shard(0) over the last mesh dimension and "
            "Replicate() over the others"
        )
    return parameter.device_mesh
