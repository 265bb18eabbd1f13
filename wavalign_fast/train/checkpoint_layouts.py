"""The two layouts of a checkpoint, and how each gets into a model on any number of ranks.

One process writes a plain transformers directory, with the optimizer in the file of the small
state. Several ranks write ``weights/`` and ``optimizer/`` together, each its own shards; one
process that trains adapters alone, or MTP layers beside the model, does so, too. Names are Hugging
Face's, whatever wraps the model.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map

from wavalign_fast.errors import DamagedFileError
from wavalign_fast.models import check_same_shapes, has_lora, load_checkpoint, shapes_of
from wavalign_fast.train.checksums import check_checksums
from wavalign_fast.train.export import WEIGHTS, copy_companions, save_configs
from wavalign_fast.train.optimizer import set_learning_rate
from wavalign_fast.train.sharded_files import PartError, load_tensors, save_tensors, saved_tensors

if TYPE_CHECKING:
    from wavalign_fast.train.policy import Policy
    from wavalign_fast.train.ranks import Ranks

Writer = Callable[[Path, "Ranks"], dict[str, Any]]
"""Writes the parts of a checkpoint on every rank; returns what else belongs into its state."""

OPTIMIZER = "optimizer"


def is_plain(policy: "Policy", ranks: "Ranks") -> bool:
    """Whether a checkpoint of ``policy`` is a transformers directory."""
    return ranks.world == 1 and not has_lora(policy) and policy.mtp is None


def plain_writer(policy: "Policy", optimizer: torch.optim.Optimizer, *, copied: bool) -> Writer:
    """Returns what writes a transformers directory, for a process that is alone."""
    weights, moments = whole_weights(policy), tree_map(whole, optimizer.state_dict())
    if copied:
        weights, moments = _copy(weights), _copy(moments)

    def write(directory: Path, ranks: "Ranks") -> dict[str, Any]:
        policy.model.save_pretrained(directory, state_dict=dict(weights))
        copy_companions(policy.model.name_or_path, directory)
        return {"optimizer": moments}

    return write


def sharded_writer(policy: "Policy", optimizer: torch.optim.Optimizer, *, copied: bool) -> Writer:
    """Returns what writes ``weights/`` and ``optimizer/``, on every rank."""
    weights, moments = weights_of(policy), moments_of(policy, optimizer)
    if copied:
        weights, moments = _copy(weights), _copy(moments)

    def write(directory: Path, ranks: "Ranks") -> dict[str, Any]:
        save_tensors(directory / WEIGHTS, weights, ranks.group)
        save_tensors(directory / OPTIMIZER, moments, ranks.group)
        with ranks.failing_together():
            if ranks.is_main:
                save_configs(policy.model, directory / WEIGHTS)
                copy_companions(policy.model.name_or_path, directory / WEIGHTS)
        return {"world": ranks.world}

    return write


def _copy(tree: Any) -> Any:
    """Returns ``tree`` with its tensors, or this rank's shards of them, copied to the CPU."""
    return tree_map(_copy_tensor, tree)


def _copy_tensor(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    value = value.detach()
    if not hasattr(value, "__tensor_flatten__"):
        return value.to("cpu", copy=True)
    # A DTensor holds a shard (and in some releases its mesh), torchao's moments of 8 bits hold
    # codes and scales, which they would share with a copy on the same device.
    names, context = value.__tensor_flatten__()
    parts = {name: _copy_tensor(getattr(value, name)) for name in names}
    return type(value).__tensor_unflatten__(parts, context, value.size(), value.stride())


def weights_of(policy: "Policy") -> dict[str, Tensor]:
    """Returns the live weights and buffers by name; a shared one comes once.

    Of a model with LoRA they are the adapters: the weights below them are not trained.
    """
    adapters_alone = has_lora(policy)
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    # The root is asked, for its hook puts away whole weights that a forward pass has left.
    for name, weight in policy.state_dict(keep_vars=True).items():
        if id(weight) not in seen and (weight.requires_grad or not adapters_alone):
            seen.add(id(weight))
            found[name.removeprefix("model.")] = weight
    return found


def moments_of(policy: "Policy", optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Returns the live state of the optimizer as ``NAME OF WEIGHT.KEY``; empty before a step."""
    return {
        f"{name}.{key}": value
        for name, weight in weights_of(policy).items()
        for key, value in optimizer.state.get(weight, {}).items()
    }


def whole_weights(policy: "Policy") -> dict[str, Tensor]:
    """Returns the weights by name, without shards. Every rank calls it."""
    return {name: whole(weight) for name, weight in weights_of(policy).items()}


def whole(value: Any) -> Any:
    """Returns a DTensor as the tensor that it is a part of; anything else as it is."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def read_sharded(
    directory: Path, policy: "Policy", optimizer: torch.optim.Optimizer, ranks: "Ranks"
) -> None:
    """Fills model and optimizer in place from what any number of ranks has written.

    Raises:
        DamagedFileError: a file is missing or cannot be read; on every rank.
        UserError: the checkpoint is of another model; on every rank.
    """
    weights = weights_of(policy)
    with ranks.failing_together():
        check_same_shapes(
            directory, shapes_of(saved_tensors(directory / WEIGHTS)), shapes_of(weights)
        )
        saved = saved_tensors(directory / OPTIMIZER)
    if not saved:  # no step had a finite gradient
        check_checksums(directory, ranks)
        _load(directory / WEIGHTS, weights)
        return
    _make_state(optimizer)
    moments = moments_of(policy, optimizer)
    with ranks.failing_together():
        check_same_shapes(directory, shapes_of(saved), shapes_of(moments))
    check_checksums(directory, ranks)
    _load(directory / WEIGHTS, weights)
    _load(directory / OPTIMIZER, moments)


def read_plain(
    directory: Path,
    policy: "Policy",
    optimizer: torch.optim.Optimizer,
    saved: Mapping[str, Any],
    ranks: "Ranks",
) -> None:
    """Fills model and optimizer in place from a transformers directory and a state.

    Args:
        saved: the ``state_dict`` of the optimizer in the process that saved.

    Raises:
        DamagedFileError: a file is missing or cannot be read; on every rank.
        UserError: the checkpoint is of another model; on every rank.
    """
    loaded: dict[str, Tensor] = {}
    with ranks.failing_together():
        if ranks.is_main:
            loaded = load_checkpoint(directory, like=policy.model).state_dict()
    check_checksums(directory, ranks)
    sharded = any(isinstance(weight, DTensor) for weight in policy.parameters())
    if sharded and saved["state"]:
        _make_state(optimizer)
    for name, weight in weights_of(policy).items():
        _fill(weight.detach(), loaded.get(name), ranks)
    if not sharded:
        optimizer.load_state_dict(dict(saved))
        return
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for index, entry in saved["state"].items():
        for key, value in entry.items():
            _take_own_part(optimizer.state[weights[index]][key], value)


def _load(directory: Path, tensors: Mapping[str, Tensor]) -> None:
    try:
        load_tensors(directory, {name: value.detach() for name, value in tensors.items()})
    except PartError as error:
        raise DamagedFileError(f"{directory} cannot be read: {error}") from error


def _make_state(optimizer: torch.optim.Optimizer) -> None:
    """Lets the optimizer make its state, to be filled: a step of rate 0 over gradients of 0."""
    for group in optimizer.param_groups:
        for weight in group["params"]:
            weight.grad = torch.zeros_like(weight)
    set_learning_rate(optimizer, 0.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _fill(weight: Tensor, value: Tensor | None, ranks: "Ranks") -> None:
    """Fills a weight of every rank from the whole ``value`` of rank 0."""
    if value is None:
        value = torch.empty(weight.shape, dtype=weight.dtype)
    value = value.to(weight.device, weight.dtype)
    if isinstance(weight, DTensor):
        weight.copy_(distribute_tensor(value, weight.device_mesh, weight.placements))
        return
    if ranks.world > 1:
        dist.broadcast(value, 0)
    weight.copy_(value)


def _take_own_part(target: Tensor, value: Tensor) -> None:
    """Fills a tensor of the optimizer's state from the whole value, which every rank has."""
    if target.shape != value.shape:
        raise ValueError(f"state of shape {tuple(value.shape)}, wanted {tuple(target.shape)}")
    if isinstance(target, DTensor):
        if type(value) is not Tensor:
            value = value.dequantize()  # torchao's moments of 8 bits, which cannot be split
        # Every rank has read the file; nothing is sent.
        value = distribute_tensor(
            value.to(target.device), target.device_mesh, target.placements, src_data_rank=None
        )
    target.copy_(value)
