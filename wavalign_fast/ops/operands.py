"""The operands of a call over a head, checked on entry."""

import os
from typing import NamedTuple

import torch
from torch.autograd import forward_ad

from wavalign_fast.ops.backends import choose_backend
from wavalign_fast.ops.inputs import (
    can_be_read,
    check_device,
    check_floats,
    check_head_shape,
    check_integers,
    check_tensor,
)
from wavalign_fast.ops.logit_transform import LogitForm
from wavalign_fast.ops.options import LossOptions, checked_options
from wavalign_fast.ops.sharded.head import HeadShard

IGNORE_INDEX = -100


class Operands(NamedTuple):
    """The checked operands of a call: flat, contiguous, in autocast's type."""

    backend: str
    options: LossOptions
    rows: torch.Tensor
    """[T, H]"""
    weight: torch.Tensor
    """[V, H], or this rank's slice of it."""
    targets: torch.Tensor
    """[T] int64. For a GPU backend they may be on the CPU."""
    bias: torch.Tensor | None
    """[V], as a kernel adds it (``LogitForm.kernel_bias``); for ``reference`` as it was given."""
    shard: HeadShard | None
    """Where ``weight`` is a slice: which, and whose the others are."""
    form: LogitForm


def checked_operands(
    hidden: torch.Tensor,
    weight: torch.Tensor | HeadShard,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    ignore_index: int,
    options: LossOptions | None,
    form: LogitForm | None = None,
) -> Operands:
    """The operands of ``linear_logprob`` as the backends take them.

    Raises:
        ValueError: shapes, dtypes, devices or ids that do not fit; the message has the value seen
            and the value wanted.
        RuntimeError: the call needs a derivative that the backend does not have.
    """
    options = checked_options(options)
    shard = weight if isinstance(weight, HeadShard) else None
    weight = weight.weight if isinstance(weight, HeadShard) else weight
    _check_devices(hidden, weight, targets, bias)
    hidden, weight = _under_autocast(hidden), _under_autocast(weight)
    bias = None if bias is None else _under_autocast(bias)
    if shard is None:  # a slice may be empty
        check_head_shape(weight)
    _check(hidden, weight, targets, bias)
    backend = choose_backend(options, hidden)
    if backend != "reference":
        _check_derivatives(backend, [t for t in (hidden, weight, bias) if t is not None])
    rows = hidden.reshape(-1, hidden.shape[-1]).contiguous()
    ids = targets.reshape(-1).to(torch.int64).contiguous()
    if shard is not None:
        _check_ids(ids, shard.vocab_size, ignore_index)
    elif backend != "cpu":  # the C++ kernels check their ids themselves
        _check_ids(ids, weight.shape[0], ignore_index)
    if backend == "reference":
        ids = ids.to(rows.device)
    form = form or LogitForm()
    if backend != "reference" or shard is not None:
        bias = form.kernel_bias(bias)
    return Operands(backend, options, rows, weight.contiguous(), ids, bias, shard, form)


def wants_grad(*operands: torch.Tensor | None) -> bool:
    """Whether autograd records these operands, so that a backward pass may follow."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in operands)


def _check_devices(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, bias: torch.Tensor | None
) -> None:
    """Refuses operands on another device than ``hidden``; targets may be on the CPU."""
    named = {"hidden": hidden, "weight": weight, "targets": targets}
    if bias is not None:
        named["bias"] = bias
    for name, operand in named.items():
        check_tensor(name, operand)
        if name != "targets" or operand.device.type != "cpu":
            check_device(name, operand, hidden.device, "hidden is")


def _under_autocast(operand: torch.Tensor) -> torch.Tensor:
    """The operand as ``F.linear`` would take it: in autocast's dtype, but float64 unchanged."""
    device = operand.device.type
    if device == "meta" or not operand.is_floating_point() or operand.dtype == torch.float64:
        return operand
    if not torch.is_autocast_enabled(device):
        return operand
    return operand.to(torch.get_autocast_dtype(device))


def _check_derivatives(backend: str, operands: list[torch.Tensor]) -> None:
    """Refuses transforms that would drop a derivative: a kernel has a backward pass only."""
    if torch.compiler.is_compiling():
        return
    functions = torch._C._functorch
    kind = None
    if any(forward_ad.unpack_dual(t).tangent is not None for t in operands):
        kind = "forward-mode derivative"
    elif wants_grad(*operands) and any(functions.is_functorch_wrapped_tensor(t) for t in operands):
        kind = "derivative under torch.func"
    if kind is not None:
        raise RuntimeError(
            f"backend {backend!r} has no {kind}; options=LossOptions(backend='reference') has one"
        )


def _check(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, bias: torch.Tensor | None
) -> None:
    if hidden.dim() == 0 or hidden.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"hidden: got shape {tuple(hidden.shape)}, want [..., {weight.shape[1]}] to match "
            f"weight {tuple(weight.shape)}"
        )
    if hidden.dtype != weight.dtype:
        raise ValueError(f"hidden is {hidden.dtype} but weight is {weight.dtype}, want one dtype")
    check_floats("hidden", hidden)
    if targets.shape != hidden.shape[:-1]:
        raise ValueError(
            f"targets: got shape {tuple(targets.shape)}, want {tuple(hidden.shape[:-1])}"
        )
    check_integers("targets", targets)
    if bias is not None:
        if bias.shape != weight.shape[:1]:
            raise ValueError(f"bias: got shape {tuple(bias.shape)}, want [{weight.shape[0]}]")
        check_floats("bias", bias)


def _check_ids(ids: torch.Tensor, vocab_size: int, ignore_index: int) -> None:
    """Refuses ids outside the vocabulary, where that needs no host sync.

    On a GPU a bad id makes its own row NaN instead; ``WAVALIGN_DEBUG=1`` checks there too.
    """
    sync = ids.is_cuda and os.environ.get("WAVALIGN_DEBUG", "0") not in ("", "0")
    if not can_be_read(ids) and not sync:
        return
    bad = torch.nonzero((ids != ignore_index) & ((ids < 0) | (ids >= vocab_size)))
    if bad.numel() > 0:
        row = int(bad[0, 0])
        raise ValueError(
            f"targets[{row}] = {int(ids[row])} is outside [0, {vocab_size}) and is not "
            f"ignore_index {ignore_index}"
        )
