"""The golden cases of the model families, and clips to encode."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

FAMILIES = Path(__file__).parents[2] / "data" / "families"


def golden(family):
    """Returns (directory, config, stored tensors, expected tensors) of a family's case."""
    directory = FAMILIES / family
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    stored = load_file(directory / "model.safetensors")
    return directory, config, stored, load_file(directory / "golden.safetensors")


def from_int16(samples):
    return samples.float() / 32768


def noise(samples, seed=0):
    """A clip with tones and noise, float32 [samples]."""
    make = torch.Generator().manual_seed(seed)
    time = torch.arange(samples) / 16_000
    tones = torch.sin(2 * torch.pi * torch.tensor([[200.0], [1700.0], [5000.0]]) * time)
    return 0.1 * tones.mean(0) + 0.05 * torch.randn(samples, generator=make)
