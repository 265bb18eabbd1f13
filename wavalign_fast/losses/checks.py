"""Checks of arguments that several losses share."""

import torch

from wavalign_fast.losses.layout import ModalityLayout
from wavalign_fast.ops.inputs import can_be_read, check_head_shape, check_tensor, finite_number
from wavalign_fast.ops.sharded.head import HeadShard


def check_finite(name: str, logps: torch.Tensor, used: torch.Tensor) -> None:
    """Refuses a log-prob that is not finite where it is ``used``, both [T], if it is on the CPU.

    A ratio to a probability of 0 is infinite. A token that was forced although the sampler had
    banned it belongs to no row. On another device the check would wait for the device; there the
    loss itself is not finite.
    """
    if not can_be_read(logps):
        return
    bad = torch.nonzero(used & ~torch.isfinite(logps))
    if bad.numel() > 0:
        at = int(bad[0, 0])
        raise ValueError(
            f"{name}[{at}]: got {float(logps[at])}, want a finite log-prob where it carries loss"
        )


def check_importance(importance: torch.Tensor, used: torch.Tensor) -> None:
    """Refuses a weight that is negative or not finite where it is ``used``, as ``check_finite``."""
    if not can_be_read(importance):
        return
    bad = torch.nonzero(used & ~((importance >= 0) & torch.isfinite(importance)))
    if bad.numel() > 0:
        at = int(bad[0, 0])
        raise ValueError(
            f"importance[{at}]: got {float(importance[at])}, want a finite weight >= 0 where the "
            "policy term has a token"
        )


def check_head(weight: torch.Tensor | HeadShard, layout: ModalityLayout) -> None:
    """Refuses a head that is not [V, H], whole or in slices, with a row for each id of the layout.

    Raises:
        ValueError: the message has what was given.
    """
    if isinstance(weight, HeadShard):
        rows = weight.vocab_size
    else:
        check_tensor("weight", weight)
        check_head_shape(weight)
        rows = weight.shape[0]
    if rows != layout.vocab_size:
        raise ValueError(
            f"weight has {rows} rows, want {layout.vocab_size}, the layout's vocab_size"
        )


def check_normaliser(name: str, value: torch.Tensor | float) -> None:
    """Refuses a number that is not > 0; a tensor that is not 0-d or, on the CPU, not >= 0."""
    if isinstance(value, torch.Tensor):
        if value.dim() != 0:
            raise ValueError(f"{name}: got shape {tuple(value.shape)}, want a number or 0-d")
        if can_be_read(value):
            finite_number(name, value.detach(), low=0.0)
        return
    try:
        finite_number(name, value, above=0)
    except ValueError:
        raise ValueError(f"{name}: got {value!r}, want a finite number > 0") from None
