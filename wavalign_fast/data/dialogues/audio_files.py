"""Looks at the WAV files that records name."""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from wavalign_fast.errors import UserError
from wavalign_fast.speech.wave_files import read_wave

SILENT = 1e-3
"""A peak below this, 60 dB under full scale, is silence: dither alone reaches 16-bit's last bit."""


class AudioFile(NamedTuple):
    """What was found under a path."""

    seconds: float = 0.0
    sample_rate: int = 0
    """In Hz."""
    channels: int = 0
    peak: float = 0.0
    """Largest magnitude of a sample; full scale is 1."""
    problem: str | None = None
    """Why it cannot be used."""


def look_at_all(paths: Iterable[Path]) -> dict[Path, AudioFile]:
    """Reads each file once, several at a time."""
    distinct = list(dict.fromkeys(paths))
    with ThreadPoolExecutor() as pool:
        return dict(zip(distinct, pool.map(_look, distinct), strict=True))


def _look(path: Path) -> AudioFile:
    if not os.path.exists(path):  # unlike Path.exists, False for a name that no system takes
        return AudioFile(problem="does not exist")
    try:
        wave, rate = read_wave(path)
    except UserError as error:
        return AudioFile(problem=str(error).removeprefix(f"{path}: "))
    channels, frames = wave.shape
    return AudioFile(frames / rate, rate, channels, float(wave.abs().max()))
