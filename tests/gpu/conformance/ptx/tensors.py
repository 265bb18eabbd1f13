"""Tensors as numpy arrays and back, bit by bit: numpy has no bfloat16."""

import numpy as np
import torch


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def from_numpy(array: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    tensor = torch.from_numpy(array.copy())
    return tensor.view(dtype) if dtype == torch.bfloat16 else tensor
