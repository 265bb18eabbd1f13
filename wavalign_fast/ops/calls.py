"""What every call over a head checks on entry, and the operands that come out of it."""

import os
from typing import NamedTuple

import torch

from wavalign_fast.ops.library import choose_backend
from wavalign_fast.ops.options import LossOptions

IGNORE_INDEX = -100


class Call(NamedTuple):
    """Checked operands: flat, contiguous, in autocast's type."""

    backend: str
    options: LossOptions
    rows: torch.Tensor
    """[T, H]"""
    weight: torch.Tensor
    targets: torch.Tensor
    """[T] int64; on the CPU they may be for a GPU backend, whatever device the rows are on."""
    bias: torch.Tensor | None


def checked_call(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    temperature: float,
    ignore_index: int,
    options: LossOptions | None,
) -> Call:
    """The operands of ``linear_logprob`` as the backends take them.

    Raises:
        ValueError: what does not fit; the message has the value seen and the value wanted.
    """
    options = options or LossOptions()
    hidden, weight, bias = _under_autocast(hidden, weight, bias)
    _check(hidden, weight, targets, bias, temperature)
    backend = choose_backend(options, hidden)
    rows = hidden.reshape(-1, hidden.shape[-1]).contiguous()
    ids = targets.reshape(-1).to(torch.int64).contiguous()
    if backend != "cpu":  # whose kernels check by themselves
        _check_ids(ids, weight.shape[0], ignore_index)
    if backend == "reference":
        ids = ids.to(rows.device)
    return Call(backend, options, rows, weight.contiguous(), ids, bias)


def wants_grad(*operands: torch.Tensor | None) -> bool:
    """Whether a backward pass through one of them may come."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in operands)


def _under_autocast(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Operands in autocast's type, as ``F.linear`` would take them."""
    device = hidden.device.type
    if not torch.is_autocast_enabled(device):
        return hidden, weight, bias
    dtype = torch.get_autocast_dtype(device)
    return hidden.to(dtype), weight.to(dtype), bias


def _check(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    temperature: float,
) -> None:
    if hasattr(weight, "placements"):
        raise ValueError("weight: got a DTensor, want a local tensor: call full_tensor() on it")
    if weight.dim() != 2 or weight.shape[0] == 0:
        raise ValueError(f"weight: got shape {tuple(weight.shape)}, want [V, H] with V > 0")
    if hidden.dim() == 0 or hidden.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"hidden: got shape {tuple(hidden.shape)}, want [..., {weight.shape[1]}] to match "
            f"weight {tuple(weight.shape)}"
        )
    if hidden.dtype != weight.dtype:
        raise ValueError(f"hidden is {hidden.dtype} but weight is {weight.dtype}, want one dtype")
    if not hidden.is_floating_point():
        raise ValueError(f"hidden: got {hidden.dtype}, want a floating dtype")
    if targets.shape != hidden.shape[:-1]:
        raise ValueError(
            f"targets: got shape {tuple(targets.shape)}, want {tuple(hidden.shape[:-1])}"
        )
    if targets.is_floating_point() or targets.dtype == torch.bool:
        raise ValueError(f"targets: got {targets.dtype}, want an integer dtype")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias: got shape {tuple(bias.shape)}, want [{weight.shape[0]}]")
    if not temperature > 0:
        raise ValueError(f"temperature: got {temperature}, want > 0")


def _check_ids(ids: torch.Tensor, vocab_size: int, ignore_index: int) -> None:
    """On a GPU the check would wait for the device: a bad id poisons its own row with NaN."""
    if ids.device.type != "cpu" and os.environ.get("WAVALIGN_DEBUG", "0") in ("", "0"):
        return
    bad = torch.nonzero((ids != ignore_index) & ((ids < 0) | (ids >= vocab_size)))
    if bad.numel() > 0:
        row = int(bad[0, 0])
        raise ValueError(
            f"targets[{row}] = {int(ids[row])} is outside [0, {vocab_size}) and is not "
            f"ignore_index {ignore_index}"
        )
