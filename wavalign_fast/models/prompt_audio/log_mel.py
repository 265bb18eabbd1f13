"""Whisper's log-mel spectrogram."""

import functools

import torch
from torch import Tensor

from wavalign_fast.errors import UserError

SAMPLE_RATE = 16_000
FFT = 400
HOP = 160


def log_mel(wave: Tensor, *, mel_bins: int, silence: int = 0) -> Tensor:
    """Computes the log-mel spectrogram, float32 [mel_bins, (N + silence) // 160].

    ``(max(log10(mel), max - 8) + 4) / 4`` with a floor of 1e-10, as OpenAI's Whisper does.

    Args:
        wave: float32 [N] at 16 kHz in [-1, 1]; N + silence is at least 201.
        mel_bins: mel bands, 80 or 128.
        silence: zeros put after the wave.

    Raises:
        UserError: the wave is too short for a frame, or is not a vector.
    """
    if wave.ndim != 1 or len(wave) == 0 or len(wave) + silence <= FFT // 2:
        raise UserError(
            f"prompt audio: shape {tuple(wave.shape)} and {silence} zeros behind it, want [N] with "
            f"more than {FFT // 2} samples in all"
        )
    padded = torch.nn.functional.pad(wave.float(), (0, silence))
    window = torch.hann_window(FFT, device=wave.device)
    spectrum = torch.stft(padded, FFT, HOP, window=window, return_complex=True)
    power = spectrum[:, :-1].abs().square()
    energies = (_filters(mel_bins).to(wave.device) @ power).clamp(min=1e-10).log10()
    return (torch.maximum(energies, energies.max() - 8) + 4) / 4


@functools.cache
def _filters(mel_bins: int) -> Tensor:
    """Slaney's mel filters, float32 [mel_bins, 201]."""
    from transformers.audio_utils import mel_filter_bank

    filters = mel_filter_bank(
        num_frequency_bins=FFT // 2 + 1,
        num_mel_filters=mel_bins,
        min_frequency=0.0,
        max_frequency=SAMPLE_RATE / 2,
        sampling_rate=SAMPLE_RATE,
        norm="slaney",
        mel_scale="slaney",
    )
    return torch.from_numpy(filters).float().T.contiguous()
