"""Each clip is encoded once, whatever its file is called; a damaged entry is encoded again."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from wavalign_fast.errors import UserError
from wavalign_fast.models.prompt_audio import PromptAudioCache
from wavalign_fast.models.prompt_audio.encoder import PromptAudioEncoder
from wavalign_fast.speech.wave_files import write_wave

from .golden import noise


class Sums(PromptAudioEncoder):
    """Two pieces of sums over 100 samples; counts its calls."""

    recipe = "sums 1"

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor([factor]), requires_grad=False)
        self.calls = 0

    def pieces(self, wave):
        self.calls += 1
        sums = wave[: len(wave) // 200 * 200].view(-1, 100).sum(1, keepdim=True) * self.factor
        return list(sums.split([len(sums) - 1, 1]))


@pytest.fixture
def clip(tmp_path):
    write_wave(tmp_path / "clip.wav", torch.stack([noise(2000), noise(2000, 1)]), 16_000)
    return tmp_path / "clip.wav"


def files(directory):
    return sorted(path for path in directory.rglob("*") if path.is_file())


def equal(found, wanted):
    assert len(found) == len(wanted)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_a_clip_is_encoded_once_under_any_name(tmp_path, clip):
    encoder = Sums()
    first = PromptAudioCache(encoder, tmp_path / "cache").embeddings(clip)
    assert [piece.shape for piece in first] == [(19, 1), (1, 1)]
    renamed = clip.rename(tmp_path / "other.wav")
    again = PromptAudioCache(Sums(), tmp_path / "cache")
    equal(again.embeddings(renamed), first)
    equal(again.embeddings(renamed.read_bytes()), first)
    assert encoder.calls == 1 and again.encoder.calls == 0
    assert len(files(tmp_path / "cache")) == 1


def test_another_encoder_channel_or_clip_is_another_entry(tmp_path, clip):
    found = {}
    for name, encoder, channel in [
        ("mean", Sums(), "mean"), ("first", Sums(), 0), ("second", Sums(), 1),
        ("factor", Sums(2.0), "mean"),
    ]:  # fmt: skip
        cache = PromptAudioCache(encoder, tmp_path / "cache", channel=channel)
        found[name] = torch.cat(cache.embeddings(clip))
        assert encoder.calls == 1
    assert len(files(tmp_path / "cache")) == 4
    torch.testing.assert_close(found["mean"], (found["first"] + found["second"]) / 2)
    assert torch.equal(found["factor"], 2 * found["mean"])
    other = Sums()
    other.recipe = "sums 2"
    data = bytearray(clip.read_bytes())
    data[-1] ^= 1
    keys = {
        PromptAudioCache(encoder, tmp_path / "cache").path(bytes(content))
        for encoder in (Sums(), other)
        for content in (data, clip.read_bytes())
    }
    assert len(keys) == 4


@pytest.mark.parametrize(
    "damage",
    [lambda b: b[:-1], lambda b: b"", lambda b: b[:40] + bytes([b[40] ^ 1]) + b[41:],
     lambda b: bytes([b[0] ^ 1]) + b[1:], lambda b: b + b"x"],
)  # fmt: skip
def test_a_damaged_entry_is_encoded_again_and_repaired(tmp_path, clip, damage, caplog):
    cache = PromptAudioCache(Sums(), tmp_path / "cache")
    first = cache.embeddings(clip)
    (entry,) = files(tmp_path / "cache")
    whole = entry.read_bytes()
    entry.write_bytes(damage(whole))
    equal(cache.embeddings(clip), first)
    assert cache.encoder.calls == 2 and "is damaged" in caplog.text
    assert entry.read_bytes() == whole and files(tmp_path / "cache") == [entry]


def test_threads_share_a_directory(tmp_path):
    clips = []
    for number in range(12):
        clips.append(tmp_path / f"{number}.wav")
        write_wave(clips[-1], noise(1000, number), 16_000)
    cache = PromptAudioCache(Sums(), tmp_path / "cache")
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(cache.embeddings, clips * 3))
    for number, pieces in enumerate(found):
        equal(pieces, found[number % 12])
    assert len(files(tmp_path / "cache")) == 12


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file"), (b"", "0 bytes"), (b"RIFFxxxx", "cut off|WAV")],
)
def test_a_file_that_is_no_clip_is_named(tmp_path, content, message):
    path = tmp_path / "bad.wav"
    if content is not None:
        path.write_bytes(content)
    cache = PromptAudioCache(Sums(), tmp_path / "cache")
    with pytest.raises(UserError, match=rf"bad\.wav.*({message})"):
        cache.embeddings(path)
    assert not (tmp_path / "cache").exists()


def test_the_encoder_gets_16_khz(tmp_path):
    write_wave(tmp_path / "slow.wav", noise(1000), 8000)
    found = PromptAudioCache(Sums(), tmp_path / "cache").embeddings(tmp_path / "slow.wav")
    assert sum(map(len, found)) == 20  # 2000 samples at 16 kHz
