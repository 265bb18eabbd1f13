"""The files that ship with the recipe: codebook and codes of the recordings."""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from wavalign_fast.errors import one_line
from wavalign_fast.recipes.spoken_sums.options import ASSETS

STRETCHES = (0.9, 1.0, 1.1)
"""Speaking rates of the recordings (flite's duration_stretch)."""
NUM_ANSWERS = 99


@dataclass(frozen=True)
class SpeechAssets:
    """The tokenizer's codebook, and the codes of each recording."""

    centroids: np.ndarray
    """float32 [256, 8 * NUM_MELS]."""
    recordings: tuple[tuple[tuple[int, ...], ...], ...]
    """Speech codes of "the answer is N." by number, then by speaking rate."""


def save_speech_assets(directory: Path, assets: SpeechAssets) -> None:
    """Writes ``codebook.safetensors`` and ``recordings.safetensors``."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file(
        {"centroids": assets.centroids.astype(np.float16)}, directory / "codebook.safetensors"
    )
    spoken = [codes for by_rate in assets.recordings for codes in by_rate]
    lengths = np.array([len(codes) for codes in spoken], dtype=np.int32)
    codes = np.array([code for one in spoken for code in one], dtype=np.uint8)
    save_file({"codes": codes, "lengths": lengths}, directory / "recordings.safetensors")


@functools.cache
def load_speech_assets(directory: Path = ASSETS) -> SpeechAssets:
    """Loads the codebook and the codes of the recordings from a recipe directory."""
    missing = [
        name
        for name in ("codebook.safetensors", "recordings.safetensors")
        if not (directory / name).is_file()
    ]
    if missing:
        raise FileNotFoundError(
            f"{directory} lacks {', '.join(missing)}; "
            f"`wavalign-fast build-recipe spoken-sums` builds them"
        )
    try:
        centroids = load_file(directory / "codebook.safetensors")["centroids"].astype(np.float32)
        tables = load_file(directory / "recordings.safetensors")
        ends = np.cumsum(tables["lengths"])[:-1]
        spoken = [tuple(codes.tolist()) for codes in np.split(tables["codes"], ends)]
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{directory} is damaged: {one_line(error)}") from error
    rates = len(STRETCHES)
    recordings = tuple(
        tuple(spoken[number * rates : (number + 1) * rates]) for number in range(NUM_ANSWERS)
    )
    return SpeechAssets(centroids, recordings)
