"""Waves as text, for codecs behind a pipe or an address.

Imports the standard library and torch alone and runs on Python 3.7, because other interpreters than
this package's read this file too.
"""

from __future__ import annotations

import base64
from typing import Any

import torch

FORMATS = {"float32": torch.float32, "pcm16": torch.int16}


def to_text(wave: Any, form: str = "float32") -> str:
    """Returns the base64 of little-endian samples, of floats [N] in [-1, 1].

    ``pcm16`` rounds to 16 bits; ``float32`` keeps every bit. Raises ``ValueError`` for another
    shape or type.
    """
    samples = torch.as_tensor(wave).detach().cpu()
    if samples.ndim == 2 and samples.shape[0] == 1:
        samples = samples[0]
    if samples.ndim != 1 or not samples.is_floating_point():
        raise ValueError(f"a wave of {samples.dtype} {tuple(samples.shape)}, wanted floats [N]")
    samples = samples.to(torch.float32)
    return base64.b64encode(to_bytes(to_pcm(samples) if form == "pcm16" else samples)).decode()


def to_pcm(wave: Any) -> Any:
    """Returns int16 of floats, clipped to [-1, 1]; NaN becomes 0."""
    return (wave.nan_to_num() * 32768).round().clamp(-32768, 32767).to(torch.int16)


def to_bytes(samples: Any) -> bytearray:
    """Returns the bytes of a tensor in its order."""
    content = bytearray(samples.numel() * samples.element_size())
    if content:  # an empty buffer is refused
        torch.frombuffer(content, dtype=samples.dtype).view(samples.shape).copy_(samples)
    return content


def from_text(text: str, form: str = "float32") -> Any:
    """Returns float32 [N]. Raises ``ValueError`` for what is no such text."""
    content = bytearray(base64.b64decode(text, validate=True))
    dtype = FORMATS[form]
    if len(content) % torch.empty(0, dtype=dtype).element_size():
        raise ValueError(f"{len(content)} bytes of {form}")
    if not content:
        return torch.zeros(0)
    samples = torch.frombuffer(content, dtype=dtype)
    return samples.to(torch.float32) / 32768 if form == "pcm16" else samples
