"""A sound file that is no WAV, by soundfile."""

import io

import soundfile
import torch

from wavalign_fast.speech.wave_files import read_wave

tone = 0.4 * torch.sin(torch.arange(8000) * 0.1)
content = io.BytesIO()
soundfile.write(content, tone.numpy(), 16000, format="FLAC")
wave, rate = read_wave(content.getvalue())
assert rate == 16000 and wave.shape == (1, 8000), (rate, wave.shape)
assert (wave[0] - tone).abs().max() < 1e-4
content = io.BytesIO()
soundfile.write(content, tone.numpy(), 16000, format="MP3")
assert read_wave(content.getvalue())[0].abs().max() > 0.3
