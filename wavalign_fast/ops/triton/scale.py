"""Scales gradients in place, by a factor that is known only on the device."""

import torch
import triton

from wavalign_fast.ops.dtypes import KERNEL_DTYPES
from wavalign_fast.ops.triton.configs import FP_FUSION, SCALE, SCALE_PROGRAMS
from wavalign_fast.ops.triton.kernels.scale import scale_kernel
from wavalign_fast.ops.triton.launch import on_device

VECTOR_BYTES = 16


def scale_(gradient: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Computes ``gradient *= factor`` in fp32 and rounds once, without a host sync.

    If the factor is exactly 1, the kernel neither reads nor writes the gradient.

    Args:
        gradient: any shape, contiguous, bfloat16, float16 or float32.
        factor: a 0-d tensor on the same device.
    """
    if gradient.dtype not in KERNEL_DTYPES or not gradient.is_contiguous():
        raise ValueError(
            f"gradient: got {gradient.dtype} of strides {gradient.stride()}, want a 16 or 32-bit "
            "float, contiguous"
        )
    if factor.dim() != 0 or factor.device != gradient.device:
        raise ValueError(
            f"factor: got {tuple(factor.shape)} on {factor.device}, want () on {gradient.device}"
        )
    factor, items = factor.to(torch.float32), gradient.view(-1)
    # Triton moves 16 bytes at a time only if it knows that the memory is aligned to 16 bytes. The
    # elements before the first such address get a launch of their own.
    before = -items.data_ptr() % VECTOR_BYTES // items.element_size()
    block, warps = SCALE
    with on_device(gradient):
        for part in (items[:before], items[before:]):
            if len(part) > 0:
                programs = min(triton.cdiv(len(part), block), SCALE_PROGRAMS)
                scale_kernel[(programs,)](
                    gradient=part,
                    factor=factor,
                    size=len(part),
                    BLOCK=block,
                    num_warps=warps,
                    enable_fp_fusion=FP_FUSION,
                )
    return gradient
