"""A codec without weights, for tests and trials: each code is a chord of two tones."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from wavalign_fast.errors import UserError
from wavalign_fast.speech.channels import ChannelRule, to_mono
from wavalign_fast.speech.codec import check_codes, checked_input
from wavalign_fast.speech.resample import resample

RATE = 16_000
BLOCK = 1280
"""Samples of a code: 12.5 codes a second, and tones at multiples of 12.5 Hz are told apart."""
TONES = 128
LOW, HIGH = 16, 160
"""First multiples of 12.5 Hz of the low tones (from 200 Hz) and of the high ones (from 2 kHz)."""
LARGEST = TONES * TONES


class ToyCodec:
    """Code c sounds as low tone c // 128 and high tone c % 128, and is heard as the loudest two.

    ``encode(decode(codes))`` are the codes. Any sound gives codes, of the tones nearest to it.

    Args:
        codebook_size: up to 16384, which is GLM-4-Voice's.
        channel: which channel to encode.
    """

    name = "toy"
    codes_per_second = RATE / BLOCK
    sample_rate = RATE

    def __init__(self, *, codebook_size: int = LARGEST, channel: ChannelRule = "mean") -> None:
        if not 1 <= codebook_size <= LARGEST:
            raise UserError(f"toy: codebook_size is {codebook_size}, wanted 1 to {LARGEST}")
        self.codebook_size = codebook_size
        self.channel = channel
        self.identity = f"toy {codebook_size}"

    def encode(self, wave: Tensor, sample_rate: int) -> Tensor:
        """Returns a code for each begun 80 ms; see ``SpeechCodec``."""
        mono = to_mono(checked_input(self.name, wave), self.channel)
        mono = resample(mono, sample_rate, RATE)
        if not len(mono):  # an FFT of no blocks is refused
            return torch.zeros(0, dtype=torch.int64)
        blocks = torch.nn.functional.pad(mono, (0, -len(mono) % BLOCK)).view(-1, BLOCK)
        loud = torch.fft.rfft(blocks).abs()
        low, high = (loud[:, first : first + TONES].argmax(1) for first in (LOW, HIGH))
        return (low * TONES + high) % self.codebook_size

    def decode(self, codes: Sequence[Tensor]) -> list[Tensor]:
        """Returns waves of 16 kHz; see ``SpeechCodec``."""
        check_codes(self.name, codes, self.codebook_size)
        return [self._sound(row.cpu().long()) for row in codes]

    def _sound(self, codes: Tensor) -> Tensor:
        turns = torch.arange(BLOCK) / BLOCK
        tones = torch.stack([codes // TONES + LOW, codes % TONES + HIGH])[:, :, None]
        return (0.25 * torch.sin(2 * math.pi * tones * turns).sum(0)).flatten()
