"""The matrix products of the chunk loop, whose results are never rounded in between."""

import torch

from wavalign_fast.ops.chunked.chunks import PRODUCT_ROWS
from wavalign_fast.ops.transfer import capturing

_agrees: dict[tuple[object, ...], bool] = {}


def product(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
    """``a @ b`` of narrow operands with results of ``out``'s type."""
    if a.dtype == out.dtype:
        torch.mm(a, b, out=out)
    elif a.device.type == "cpu":
        torch.mm(a.to(out.dtype), b.to(out.dtype), out=out)
    else:
        torch.mm(a, b, out_dtype=out.dtype, out=out)


def add_product(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """``total += a @ b``, likewise."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    elif a.device.type == "cpu":
        total.addmm_(a.to(total.dtype), b.to(total.dtype))
    else:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)


def logits_product(
    states: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, *, same_bits: bool
) -> None:
    """``states @ weightᵀ`` [R, V] into the first rows of ``out``, which has whole products of them.

    A library chooses its kernel by the shape, and with it the order of a row's sums. Where a row's
    bits must not depend on the rows beside it, they are those of a product of ``PRODUCT_ROWS``
    rows, filled up with zeros; and the product is a taller one where that gives the same bits.
    """
    if not same_bits:
        product(states, weight.T, out[: len(states)])
        return
    missing = -len(states) % PRODUCT_ROWS
    if missing > 0:
        states = torch.nn.functional.pad(states, (0, 0, 0, missing))
    height = len(states) if _tall_agrees(states, weight, out) else PRODUCT_ROWS
    for first in range(0, len(states), height):
        rows = slice(first, first + height)
        product(states[rows], weight.T, out[rows])


def _tall_agrees(states: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> bool:
    """Whether one product of this shape has the bits of products of ``PRODUCT_ROWS`` rows.

    It is tried once for each shape, on operands of noise, which takes the time of a few products
    and waits for the device. A graph that is captured cannot wait: what has not been tried before
    is taken not to agree. ``out`` is overwritten.
    """
    height, device = len(states), states.device
    if height == PRODUCT_ROWS:
        return True
    # By its address a library chooses too. Rows that come compacted always start on 16 bytes.
    if weight.data_ptr() % 16 != 0:
        return False
    key = (device, states.dtype, out.dtype, height, *weight.shape, *_library())
    if key not in _agrees:
        if capturing(device):
            return False
        try:
            _agrees[key] = _tried(states, weight, out[:height])
        except torch.OutOfMemoryError:  # of the trial: what it is for needs less
            return False
    return _agrees[key]


def _tried(states: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> bool:
    rows, head = _noise(states, 1), _noise(weight, 2)
    product(rows, head.T, out)
    # As far apart as the rows of `out`: that too is a part of the shape.
    low = out.new_empty((PRODUCT_ROWS, out.stride(0)))[:, : out.shape[1]]
    for first in range(0, len(out), PRODUCT_ROWS):
        part = slice(first, first + PRODUCT_ROWS)
        product(rows[part], head.T, low)
        if not torch.equal(low, out[part]):
            return False
    return True


def _library() -> tuple[object, ...]:
    """The settings by which torch chooses a library for products, and its kernel."""
    return torch.backends.cuda.matmul.fp32_precision, torch.backends.cuda.preferred_blas_library()


def _noise(like: torch.Tensor, seed: int) -> torch.Tensor:
    """Numbers of many exponents, whose sums depend on their order; from a generator of its own."""
    generator = torch.Generator(like.device).manual_seed(seed)
    return torch.empty_like(like).normal_(generator=generator)
