"""Checks of single arguments, shared by the ops and the losses: numbers and tensors."""

import math
from typing import Any

import torch
from torch._subclasses import FakeTensor

from wavalign_fast.errors import shown

SMALLEST_TEMPERATURE = torch.finfo(torch.float32).tiny
"""Below it a division in float32 has no meaning."""


def can_be_read(tensor: torch.Tensor) -> bool:
    """Whether a check may read the values: they exist, and reading them needs no host sync."""
    if torch.compiler.is_compiling() or isinstance(tensor, FakeTensor):
        return False
    return tensor.device.type == "cpu"


def finite_number(
    name: str,
    value: Any,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    above: float | None = None,
) -> float:
    """``value`` as a float: finite, in [low, high], and larger than ``above``.

    A tensor of one element counts as a number, unless it requires a gradient, which it would not
    get.

    Raises:
        ValueError: for anything else; the message has the name, the value and what is wanted.
    """
    if isinstance(value, torch.Tensor):
        if value.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"{name}: got a tensor that requires a gradient, want a number: it gets none here"
            )
        if value.numel() != 1 or value.dtype == torch.bool or value.is_complex():
            raise ValueError(
                f"{name}: got {value.dtype} of shape {tuple(value.shape)}, want a number or 0-d"
            )
        if value.device.type == "meta":
            raise ValueError(f"{name}: got a tensor on meta, want a number")
        value = value.item()
    wanted = f"> {above:g} and finite" if above is not None else _wanted(low, high)
    try:
        # numpy's truth values are not of type bool.
        odd = isinstance(value, str | bytes | bool) or type(value).__name__ in ("bool", "bool_")
        number = math.nan if odd else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    # Written as comparisons that a NaN fails.
    inside = low <= number <= high and -math.inf < number < math.inf
    if not inside or (above is not None and not number > above):
        raise ValueError(f"{name}: got {shown(value)}, want {wanted}")
    return number


def _wanted(low: float, high: float) -> str:
    if low > -math.inf and high < math.inf:
        return f"{low:g} <= value <= {high:g}"
    return f">= {low:g} and finite" if low > -math.inf else "a finite number"


def whole_number(name: str, value: Any, *, low: int | None, unit: str = "") -> int:
    """``value`` as an int of at least ``low`` and any size. A float is refused, even a whole one.

    Raises:
        ValueError: for anything else; the message has the name, the value and what is wanted.
    """
    try:
        number = None if isinstance(value, bool) else int(value.__index__())
    except (AttributeError, TypeError):
        number = None
    if number is None or (low is not None and number < low):
        wanted = "a whole number" if low is None else f"a whole number >= {low}{unit}"
        raise ValueError(f"{name}: got {shown(value)}, want {wanted}")
    return number


def true_or_false(name: str, value: Any) -> None:
    """Refuses a value that is not a ``bool``; in a condition the string "no" would be true.

    Raises:
        ValueError: the message has the value.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{name}: got {shown(value)}, want True or False")


def check_type(name: str, value: Any, wanted: type) -> None:
    """Refuses a value of another type than ``wanted``.

    Raises:
        ValueError: the message has both types.
    """
    if not isinstance(value, wanted):
        seen = _article(type(value).__name__)
        raise ValueError(f"{name}: got {seen}, want {_article(wanted.__name__)}")


def check_tensor(name: str, value: Any) -> None:
    """Refuses a value that is not a dense local tensor; for a DTensor the message says what to do.

    Raises:
        ValueError: the message has what was given.
    """
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"{name}: got {_article(type(value).__name__)}, want a torch.Tensor")
    if hasattr(value, "placements"):
        raise ValueError(f"{name}: got a DTensor, want a local tensor: {GATHER.get(name, LOCAL)}")
    if value.is_nested or value.layout != torch.strided:
        kind = "nested" if value.is_nested else str(value.layout).removeprefix("torch.")
        raise ValueError(f"{name}: got a tensor of layout {kind}, want a dense one")


def check_integers(name: str, tensor: torch.Tensor) -> None:
    """Refuses a tensor that is not of an integer dtype; bool is not one."""
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise ValueError(f"{name}: got {tensor.dtype}, want an integer dtype")


def check_int64(name: str, tensor: torch.Tensor) -> None:
    """Refuses a tensor that is not int64."""
    if tensor.dtype != torch.int64:
        raise ValueError(f"{name}: got {tensor.dtype}, want torch.int64")


def check_floats(name: str, tensor: torch.Tensor) -> None:
    """Refuses a tensor that is not of a floating dtype."""
    if not tensor.is_floating_point():
        raise ValueError(f"{name}: got {tensor.dtype}, want a floating dtype")


def check_device(name: str, tensor: torch.Tensor, device: torch.device, beside: str) -> None:
    """Refuses a tensor on another device than ``device``; ``beside`` says what is there."""
    if tensor.device != device:
        raise ValueError(f"{name}: got a tensor on {tensor.device}, want {device}, where {beside}")


def check_head_shape(weight: torch.Tensor) -> None:
    """Refuses a head that is not [V, H] with at least one id."""
    if weight.dim() != 2 or weight.shape[0] == 0:
        raise ValueError(f"weight: got shape {tuple(weight.shape)}, want [V, H] with V > 0")


def _article(noun: str) -> str:
    return f"an {noun}" if noun[0].lower() in "aeiou" else f"a {noun}"


LOCAL = "to_local() if the ranks hold different positions"
_FULL = (
    "full_tensor(grad_placements=[Partial()]) where the ranks hold different positions (one "
    'Partial() a mesh dimension; "avg" in it averages): without it each rank keeps the gradient '
    "of its own positions alone"
)
GATHER = {"weight": _FULL, "bias": _FULL}
"""What to call on a sharded parameter: the ranks' gradients have to be added up on the way back."""
