"""Torch's defaults of a process, which a caller may have changed."""

from collections.abc import Callable
from contextlib import nullcontext

import torch


def assert_defaults_change_no_bit(
    results: Callable[[], list[torch.Tensor]], *, device: str | None = None
) -> None:
    """``results`` are the same under a default dtype of bfloat16, and a default device if given."""
    want = results()
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with nullcontext() if device is None else torch.device(device):
            got = results()
    finally:
        torch.set_default_dtype(before)
    for ours, truth in zip(got, want, strict=True):
        assert ours.dtype == truth.dtype and torch.equal(ours, truth)
