"""Files that are either whole or absent: written beside the target, then renamed over it."""

import json
import math
import os
import shutil
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Lets ``write`` fill a temporary file beside ``path`` and renames it to ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text, whole or not at all."""
    write_atomically(path, lambda temporary: _write_text(temporary, text))


def write_json(path: Path, value: Any) -> None:
    """Writes JSON that browsers read: a number that is not finite becomes null."""
    write_text(path, to_json(value, indent=2) + "\n")


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Strict JSON; NaN and infinities become null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False, ensure_ascii=False)


def write_wav(path: Path, waveform: Any, sample_rate: int) -> None:
    """Writes float samples [N] in [-1, 1] as 16-bit PCM, mono."""
    samples = np.clip(np.nan_to_num(np.asarray(waveform, dtype=np.float64)), -1.0, 1.0)
    pcm = np.round(samples * 32767).astype("<i2").tobytes()

    def write(temporary: Path) -> None:
        with wave.open(str(temporary), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(sample_rate)
            file.writeframes(pcm)

    write_atomically(path, write)


def replace_directory(new: Path, target: Path, retired: Path | None = None) -> None:
    """Puts directory ``new`` in the place of ``target``; the old one moves to ``retired`` or goes.

    A crash between the two renames leaves the old one complete under its retired name.
    """
    parking = retired or target.with_name(f"{target.name}.old")
    if parking.exists():
        shutil.rmtree(parking)
    if target.exists():
        parking.parent.mkdir(parents=True, exist_ok=True)
        os.replace(target, parking)
    os.replace(new, target)
    if retired is None:
        shutil.rmtree(parking, ignore_errors=True)


def _write_text(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
