"""Makes one channel of several, and reads a file as a mono wave of a wanted rate."""

from pathlib import Path
from typing import Literal, TypeAlias

from torch import Tensor

from wavalign_fast.errors import UserError, naming, shown
from wavalign_fast.speech.resample import resample
from wavalign_fast.speech.wave_files import read_wave

ChannelRule: TypeAlias = int | Literal["mean"]
"""``"mean"`` of all channels, or the number of the one to take, from 0."""


def to_mono(wave: Tensor, channel: ChannelRule = "mean") -> Tensor:
    """Returns [N] of a wave [N] or [channels, N].

    Raises:
        UserError: there is no such channel, or ``channel`` is something else.
        ValueError: the wave has another shape.
    """
    if wave.ndim not in (1, 2) or (wave.ndim == 2 and wave.shape[0] == 0):
        raise ValueError(f"wave has shape {tuple(wave.shape)}, wanted [N] or [channels, N]")
    rows = wave[None] if wave.ndim == 1 else wave
    if channel == "mean":
        return rows[0] if len(rows) == 1 else rows.mean(0)
    if not isinstance(channel, int) or isinstance(channel, bool):
        raise UserError(f"channel {shown(channel)} given, wanted 'mean' or a number from 0")
    if not 0 <= channel < len(rows):
        raise UserError(
            f"channel {channel} given, wanted 0 to {len(rows) - 1}: the wave has no more"
        )
    return rows[channel]


def read_mono(path: Path, sample_rate: int, channel: ChannelRule = "mean") -> Tensor:
    """Reads a WAV file as float32 [N] at ``sample_rate`` Hz.

    Raises:
        UserError: the file cannot be read (``read_wave``) or has no such channel.
    """
    wave, rate = read_wave(path)
    with naming(str(path)):
        return resample(to_mono(wave, channel), rate, sample_rate)
