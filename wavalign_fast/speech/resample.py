"""Changes the sample rate of a wave by band-limited interpolation.

Source: J. O. Smith, Digital Audio Resampling (ccrma.stanford.edu/~jos/resample), with the values of
torchaudio's default: a sinc with six zero crossings on each side under a Hann window, cut off at
99 % of the lower rate's half.
"""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from wavalign_fast.errors import UserError

ZERO_CROSSINGS = 6
ROLLOFF = 0.99
HIGHEST_RATE = 1_000_000
BLOCK = 1 << 16
"""Outputs that are made at once; each needs a copy of the samples under its taps."""


def resample(wave: Tensor, old_rate: int, new_rate: int) -> Tensor:
    """Returns ``wave`` at another rate.

    y[n] = c Σ_s x[s] · sinc(u) · cos²(πu / 12) with u = c·(s − n·old/new), |u| < 6 and
    c = 0.99·min(old, new) / old; samples beyond the ends are 0.

    Args:
        wave: floats [..., N]. Differentiable.
        old_rate: its rate in Hz.
        new_rate: the wanted rate in Hz.

    Returns:
        [..., ceil(N · new_rate / old_rate)] in the dtype of ``wave``.

    Raises:
        UserError: a rate is not a whole number from 1 to 1 000 000 Hz.
    """
    for rate in (old_rate, new_rate):
        if int(rate) != rate or not 1 <= rate <= HIGHEST_RATE:
            raise UserError(f"sample rate {rate} given, wanted 1 to {HIGHEST_RATE} Hz")
    common = math.gcd(int(old_rate), int(new_rate))
    old, new = int(old_rate) // common, int(new_rate) // common
    if old == new or wave.numel() == 0:
        return wave
    rows = wave.reshape(-1, wave.shape[-1])
    width = _width(old, new)
    taps = _taps(old, new).to(wave)
    # Room on both sides for the taps of the first and the last output.
    windows = F.pad(rows, (width, width + 1)).unfold(-1, taps.shape[-1], 1)  # [rows, N + 1, taps]
    length = -(-wave.shape[-1] * new // old)
    blocks = []
    for start in range(0, length, BLOCK):
        n = torch.arange(start, min(start + BLOCK, length), device=wave.device)
        blocks.append((windows[:, n * old // new] * taps[n % new]).sum(-1))
    return torch.cat(blocks, dim=-1).view(*wave.shape[:-1], length)


def _width(old: int, new: int) -> int:
    """Returns how many samples on each side of an output it depends on."""
    return math.ceil(ZERO_CROSSINGS * old / (ROLLOFF * min(old, new)))


@lru_cache(maxsize=64)
def _taps(old: int, new: int) -> Tensor:
    """Returns float64 weights [new, 2·width + 1]: output n uses those of row n mod new."""
    width = _width(old, new)
    cutoff = ROLLOFF * min(old, new) / old
    # Every output lies n·old mod new parts of 1/new behind a sample. Whole numbers stay exact.
    behind = (torch.arange(new) * old % new)[:, None]
    offsets = (torch.arange(-width, width + 1) * new - behind).double() / new
    u = (offsets * cutoff).clamp(-ZERO_CROSSINGS, ZERO_CROSSINGS)
    window = torch.cos(u * (math.pi / (2 * ZERO_CROSSINGS))) ** 2
    return torch.sinc(u) * window * cutoff
