"""CPU tensors behind tensors that say they are elsewhere, for the pretended GPUs."""

from typing import ClassVar

import torch
from typing_extensions import Self


class Wrapped(torch.Tensor):
    """A tensor with the shape, strides and dtype of ``inner``, which holds the values."""

    inner: torch.Tensor
    place: ClassVar[torch.device | None] = None
    """The device of the wrapper as torch sees it; by default that of ``inner``."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Self:
        tensor = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, device=cls.place or inner.device,
        )  # fmt: skip
        tensor.inner = inner
        return tensor
