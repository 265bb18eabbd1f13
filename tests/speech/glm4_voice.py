"""The golden tokenizer and decoder of GLM-4-Voice: random weights, outputs of its own code."""

from pathlib import Path

import torch
from safetensors.torch import load_file

FAMILIES = Path(__file__).parents[1] / "data" / "families"
TOKENIZER = FAMILIES / "glm4_voice_tokenizer"
DECODER = FAMILIES / "glm4_voice_decoder"


def golden(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "golden.safetensors")
