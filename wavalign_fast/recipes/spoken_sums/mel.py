"""The log-mel features that the speech tokenizer and decoder share."""

import functools

import numpy as np
import torch

SAMPLE_RATE = 16_000
FFT_SIZE = 512
HOP = 160
NUM_MELS = 48
LOG_FLOOR = 1e-4


def _hz_to_mel(hz: np.ndarray) -> np.ndarray:
    """Converts to Slaney's mel scale: linear below 1 kHz, logarithmic above."""
    linear = hz / (200 / 3)
    return np.where(hz < 1000, linear, 15 + np.log(np.maximum(hz, 1000) / 1000) * 27 / np.log(6.4))


def _mel_to_hz(mel: np.ndarray) -> np.ndarray:
    return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27))


@functools.cache
def mel_filters(low_hz: float = 60.0, high_hz: float = 7600.0) -> np.ndarray:
    """Returns triangular filters of unit area, float32 [NUM_MELS, FFT_SIZE // 2 + 1]."""
    low, high = _hz_to_mel(np.array([low_hz, high_hz]))
    edges = _mel_to_hz(np.linspace(low, high, NUM_MELS + 2))
    frequencies = np.linspace(0, SAMPLE_RATE / 2, FFT_SIZE // 2 + 1)
    rising = (frequencies - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - frequencies) / (edges[2:] - edges[1:-1])[:, None]
    area = 2 / (edges[2:] - edges[:-2])
    filters = np.maximum(0, np.minimum(rising, falling)) * area[:, None]
    return filters.astype(np.float32)


@functools.cache
def inverse_mel_filters() -> np.ndarray:
    """Returns the pseudo-inverse of the filters, float32 [FFT_SIZE // 2 + 1, NUM_MELS]."""
    return np.linalg.pinv(mel_filters())


@functools.cache
def window() -> torch.Tensor:
    """Returns the Hann window of every transform, float32 [FFT_SIZE]."""
    return torch.hann_window(FFT_SIZE)


def log_mel(waveform: np.ndarray) -> np.ndarray:
    """Converts a waveform (float32 [samples], 16 kHz) to log-mels, float32 [frames, NUM_MELS]."""
    spectrum = torch.stft(
        torch.from_numpy(waveform), FFT_SIZE, HOP, window=window(), return_complex=True
    )
    return np.log(mel_filters() @ spectrum.abs().numpy() + LOG_FLOOR).T.astype(np.float32)
