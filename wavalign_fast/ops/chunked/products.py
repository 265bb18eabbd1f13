"""The GEMMs of the chunk loop, which round no intermediate result."""

import torch

from wavalign_fast.ops.chunked.chunks import PRODUCT_ROWS
from wavalign_fast.ops.transfer import capturing

_agrees: dict[tuple[object, ...], bool] = {}


def product(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
    """``a @ b`` of narrow operands with results in the dtype of ``out``."""
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
    """``states @ weightᵀ`` [R, V] into the first rows of ``out``.

    cuBLAS chooses its kernel by the shape, and the kernel determines the order of a row's sums.
    With ``same_bits`` a row gets the bits of a GEMM of ``PRODUCT_ROWS`` rows, padded with zeros,
    whatever the rows beside it. A single taller GEMM runs instead where it gives the same bits.

    Args:
        out: as many rows as ``states``, rounded up to a multiple of ``PRODUCT_ROWS``.
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
    """Whether one GEMM of this shape has the bits of GEMMs of ``PRODUCT_ROWS`` rows.

    This is tried once for each shape, on noise, which takes the time of a few GEMMs and a host
    sync. A graph capture cannot sync: a shape that has not been tried before counts as differing.
    Overwrites ``out``.
    """
    height, device = len(states), states.device
    if height == PRODUCT_ROWS:
        return True
    # The kernel also depends on alignment. Compacted rows are always aligned to 16 bytes.
    if weight.data_ptr() % 16 != 0:
        return False
    key = (device, states.dtype, out.dtype, height, *weight.shape, *_library())
    if key not in _agrees:
        if capturing(device):
            return False
        try:
            _agrees[key] = _tried(states, weight, out[:height])
        except torch.OutOfMemoryError:  # the step itself needs less memory than the trial
            return False
    return _agrees[key]


def _tried(states: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> bool:
    rows, head = _noise(states, 1), _noise(weight, 2)
    product(rows, head.T, out)
    # With the row stride of `out`, on which the kernel depends too.
    low = out.new_empty((PRODUCT_ROWS, out.stride(0)))[:, : out.shape[1]]
    for first in range(0, len(out), PRODUCT_ROWS):
        part = slice(first, first + PRODUCT_ROWS)
        product(rows[part], head.T, low)
        if not torch.equal(low, out[part]):
            return False
    return True


def _library() -> tuple[object, ...]:
    """The settings of torch that choose the library and the kernel of a GEMM."""
    return torch.backends.cuda.matmul.fp32_precision, torch.backends.cuda.preferred_blas_library()


def _noise(like: torch.Tensor, seed: int) -> torch.Tensor:
    """Random numbers, whose sums depend on their order; torch's own generator is not advanced."""
    generator = torch.Generator(like.device).manual_seed(seed)
    return torch.empty_like(like).normal_(generator=generator)
