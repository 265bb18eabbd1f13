"""The dtypes of operands and of results."""

import torch

KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""The dtypes of operands that the compiled kernels take."""


def statistics_dtype(operands: torch.dtype) -> torch.dtype:
    """The dtype of a row's results: float64 for float64 operands, float32 for all others."""
    return torch.float64 if operands == torch.float64 else torch.float32
