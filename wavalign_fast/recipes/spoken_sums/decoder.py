"""The speech decoder: codes -> log-mel centroids -> Griffin-Lim waveform."""

from collections.abc import Sequence

import numpy as np
import torch

from wavalign_fast.recipes.spoken_sums.mel import (
    FFT_SIZE,
    HOP,
    LOG_FLOOR,
    NUM_MELS,
    SAMPLE_RATE,
    inverse_mel_filters,
    window,
)

ITERATIONS = 16
MIN_CODES = 3
SILENCE = np.zeros(SAMPLE_RATE // 2, dtype=np.float32)


def griffin_lim(magnitude: torch.Tensor, iterations: int = ITERATIONS) -> torch.Tensor:
    """Reconstructs a waveform [samples] from a magnitude spectrum [FFT_SIZE // 2 + 1, frames].

    The initial phase comes from a fixed seed, so equal codes always sound the same.
    """
    hann = window()
    phase = torch.rand(magnitude.shape, generator=torch.Generator().manual_seed(0))
    angles = torch.polar(torch.ones_like(phase), 2 * torch.pi * phase)
    for _ in range(iterations):
        waveform = torch.istft(magnitude * angles, FFT_SIZE, HOP, window=hann)
        spectrum = torch.stft(waveform, FFT_SIZE, HOP, window=hann, return_complex=True)
        angles = spectrum / (spectrum.abs() + 1e-9)
    return torch.istft(magnitude * angles, FFT_SIZE, HOP, window=hann)


def decode(codes: Sequence[int], centroids: np.ndarray) -> np.ndarray:
    """Decodes speech codes to a waveform, float32 [samples] at 16 kHz in [-1, 1].

    Fewer than three codes give half a second of silence: they are too short for a word.
    """
    if len(codes) < MIN_CODES:
        return SILENCE
    frames = centroids[list(codes)].reshape(-1, NUM_MELS)
    magnitude = np.maximum(inverse_mel_filters() @ (np.exp(frames.T) - LOG_FLOOR), 1e-6)
    return griffin_lim(torch.from_numpy(magnitude)).clamp(-1, 1).numpy()
