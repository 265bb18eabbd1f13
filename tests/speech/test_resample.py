"""Resampling against its definition, and against what a change of rate must keep."""

import math

import pytest
import torch

from wavalign_fast.errors import UserError
from wavalign_fast.speech.resample import resample


def definition(wave: torch.Tensor, old: int, new: int) -> torch.Tensor:
    """The sum of the docstring, term by term in float64."""
    n = torch.arange(math.ceil(len(wave) * new / old), dtype=torch.float64)[:, None]
    s = torch.arange(len(wave), dtype=torch.float64)
    c = 0.99 * min(old, new) / old
    u = c * (s - n * old / new)
    taps = torch.where(u.abs() < 6, c * torch.sinc(u) * torch.cos(math.pi * u / 12) ** 2, 0)
    return taps @ wave.double()


@pytest.mark.parametrize(
    ("old", "new", "length"),
    [
        (16000, 24000, 100),
        (24000, 16000, 101),
        (22050, 16000, 700),
        (8000, 16000, 3),
        (44100, 16000, 1000),
        (16001, 16000, 40),  # only 40 of the 16000 phases occur
        (48000, 8000, 1),
    ],
)
def test_resampling_is_its_definition(old, new, length):
    torch.manual_seed(length)
    wave = torch.randn(length)
    result = resample(wave, old, new)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, definition(wave, old, new).float(), rtol=0, atol=2e-6)
    exact = resample(wave.double(), old, new)
    torch.testing.assert_close(exact, definition(wave, old, new), rtol=0, atol=1e-12)


def test_a_tone_keeps_its_pitch_and_height():
    seconds = torch.arange(2205) / 22050
    tone = resample(torch.sin(2 * math.pi * 440 * seconds), 22050, 16000)
    wanted = torch.sin(2 * math.pi * 440 * torch.arange(len(tone)) / 16000)
    assert (tone - wanted)[20:-20].abs().max() < 2e-3


def test_what_the_new_rate_cannot_hold_is_removed():
    seconds = torch.arange(2400) / 24000
    tone = resample(torch.sin(2 * math.pi * 11000 * seconds), 24000, 16000)
    assert tone[20:-20].abs().max() < 1e-2


def test_rows_are_resampled_alone_and_empty_waves_stay_empty():
    rows = torch.randn(2, 3, 50)
    both = resample(rows, 16000, 22050)
    assert both.shape == (2, 3, 69)
    alone = resample(rows[1, 2], 16000, 22050)
    torch.testing.assert_close(both[1, 2], alone, rtol=0, atol=2e-6)
    assert resample(torch.zeros(2, 0), 8000, 16000).shape == (2, 0)
    assert resample(rows, 8000, 8000) is rows


@pytest.mark.parametrize("rate", [0, -8000, 22050.5, 2_000_000])
def test_an_impossible_rate_is_refused(rate):
    with pytest.raises(UserError, match=rf"sample rate {rate} given, wanted 1 to 1000000 Hz"):
        resample(torch.zeros(4), rate, 16000)
