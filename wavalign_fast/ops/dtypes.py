"""The types of operands and of results."""

import torch

KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Of operands that compiled kernels take."""


def statistics_dtype(operands: torch.dtype) -> torch.dtype:
    """The type of a row's results: float32, float64 for float64 operands."""
    return torch.float64 if operands == torch.float64 else torch.float32
