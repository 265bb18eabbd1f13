"""Features of a wave are Kaldi's and Whisper's."""

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor

from wavalign_fast.errors import DamagedFileError, UserError
from wavalign_fast.models.prompt_audio.fbank import fbank, low_frame_rate, read_mean_variance
from wavalign_fast.models.prompt_audio.log_mel import log_mel

from .golden import from_int16, golden, noise


def test_fbank_is_that_of_the_published_path():
    directory, _, _, expected = golden("vita_audio_plus")
    shift, scale = read_mean_variance(directory / "am.mvn", size=560)
    for number in range(3):
        windows = low_frame_rate(fbank(expected[f"audio.{number}.wave"]))
        wanted = expected[f"audio.{number}.features"]
        torch.testing.assert_close((windows + shift) * scale, wanted, rtol=0, atol=1.3e-4)


@pytest.mark.parametrize(("samples", "frames"), [(400, 1), (559, 1), (560, 2), (16_000, 98)])
def test_only_whole_frames_count(samples, frames):
    assert fbank(noise(samples)).shape == (frames, 80)


def test_silence_has_the_least_energy():
    assert fbank(torch.zeros(400)).eq(np.log(np.float32(1.1920929e-07))).all()


@pytest.mark.parametrize("wave", [torch.zeros(399), torch.zeros(2, 800)])
def test_a_wave_without_a_frame_is_refused(wave):
    with pytest.raises(UserError, match=r"want \[N\] with at least 400 samples"):
        fbank(wave)


@pytest.mark.parametrize("frames", range(1, 16))
def test_windows_repeat_the_first_and_the_last_frame(frames):
    features = torch.arange(frames * 2.0).view(frames, 2)
    rows = [features[min(max(n - 3, 0), frames - 1)] for n in range(frames + 12)]
    wanted = [torch.cat(rows[6 * j : 6 * j + 7]) for j in range(-(-frames // 6))]
    assert torch.equal(low_frame_rate(features), torch.stack(wanted))


@pytest.mark.parametrize(
    ("old", "new"), [("<Rescale>", "<Other>"), ("-10.709515", ""), ("-10.709515", "x")]
)
def test_a_damaged_file_of_means_is_refused(tmp_path, old, new):
    directory = golden("vita_audio_plus")[0]
    text = (directory / "am.mvn").read_text()
    (tmp_path / "am.mvn").write_text(text.replace(old, new))
    with pytest.raises(DamagedFileError, match=r"am\.mvn: \d+ numbers after <\w+>, want 560"):
        read_mean_variance(tmp_path / "am.mvn", size=560)
    with pytest.raises(DamagedFileError, match="none cannot be read"):
        read_mean_variance(tmp_path / "none", size=560)


def test_log_mel_is_that_of_the_published_path():
    expected = golden("step_audio_2")[3]
    for number in range(3):
        wave = from_int16(expected[f"audio.{number}.wave_int16"])
        mel = log_mel(wave, mel_bins=128, silence=479)
        torch.testing.assert_close(mel, expected[f"audio.{number}.mel"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("bins", [80, 128])
def test_log_mel_is_that_of_whispers_extractor(bins):
    extractor = WhisperFeatureExtractor(feature_size=bins)
    wave = noise(7000)
    found = extractor(wave.numpy(), sampling_rate=16_000, padding=False, return_tensors="pt")
    wanted = found.input_features[0]
    torch.testing.assert_close(log_mel(wave, mel_bins=bins), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("wave", [torch.zeros(0), torch.zeros(200), torch.zeros(1, 800)])
def test_log_mel_of_nothing_is_refused(wave):
    with pytest.raises(UserError, match=r"want \[N\] with more than 200 samples"):
        log_mel(wave, mel_bins=80)
