"""MP3, FLAC and Ogg are read by soundfile; what cannot be read says how to convert it."""

import io

import pytest
import torch

from wavalign_fast.errors import UserError
from wavalign_fast.speech.code_cache import CodeCache
from wavalign_fast.speech.compressed_files import format_of
from wavalign_fast.speech.toy_codec import ToyCodec
from wavalign_fast.speech.wave_files import as_wave_bytes, read_wave, wave_bytes, wave_info

RATE = 16000
TONE = 0.4 * torch.sin(torch.arange(RATE) * 0.1)[None] * torch.tensor([[1.0], [0.5]])


def encoded(kind: str) -> bytes:
    soundfile = pytest.importorskip("soundfile")
    content = io.BytesIO()
    soundfile.write(content, TONE.T.numpy(), RATE, format=kind)
    return content.getvalue()


@pytest.mark.parametrize(("kind", "off"), [("MP3", 0.02), ("FLAC", 1e-4), ("OGG", 0.05)])
def test_compressed_sound_is_read_as_waves_are(kind, off, tmp_path):
    path = tmp_path / "sound.bin"  # its bytes tell the format, not its name
    path.write_bytes(encoded(kind))
    wave, rate = read_wave(path)
    assert rate == RATE and wave.dtype == torch.float32 and wave.is_contiguous()
    assert wave.shape[0] == 2 and abs(wave.shape[1] - RATE) < 2500  # MP3 pads its frames
    middle = slice(4000, 12000)
    delays = range(-1200, 1201) if kind == "MP3" else [0]
    wanted = [TONE[:, 4000 + delay : 12000 + delay] for delay in delays]
    assert min((wave[:, middle] - one).abs().max() for one in wanted) < off
    info = wave_info(path)
    assert (info.sample_rate, info.channels, info.frames) == (RATE, *wave.shape)
    assert torch.equal(read_wave(path.read_bytes())[0], wave)
    back, _ = read_wave(as_wave_bytes(path))
    assert (back - wave).abs().max() <= 2**-15
    codec = ToyCodec()
    assert len(CodeCache(tmp_path / "cache").codes(path, codec).codes) == pytest.approx(
        wave.shape[1] / RATE * codec.codes_per_second, abs=1
    )


def test_a_damaged_file_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "a.flac"
    path.write_bytes(encoded("FLAC")[:60])
    with pytest.raises(UserError, match=r"a\.flac: the file is FLAC and (cannot|has no)"):
        read_wave(path)


def test_an_mp3_that_is_cut_off_is_an_error(tmp_path):
    path, whole = tmp_path / "a.mp3", encoded("MP3")
    tag = b"ID3\x04\0\0\0\0\x02\x01" + bytes(257)  # of 2 * 128 + 1 bytes
    for before in (b"", tag, tag + tag):
        path.write_bytes(before + whole)
        frames = read_wave(path)[0].shape[1]
        assert wave_info(path).frames == frames
        path.write_bytes(before + whole[: len(whole) // 2])
        for read in (read_wave, wave_info):
            with pytest.raises(UserError, match=rf"a\.mp3: .*cut off: \d+ of {frames} samples"):
                read(path)


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"\xff\xfb\x90\x64" + bytes(20), "MP3"),
        (b"ID3\x04" + bytes(20), "MP3"),
        (b"OggS" + bytes(20), "Ogg"),
        (b"\0\0\0\x20ftypM4A " + bytes(20), "MP4/M4A"),
    ],
)
def test_what_cannot_be_read_says_how_to_convert_it(head, kind, tmp_path, failing_import):
    path = tmp_path / "q"
    path.write_bytes(head)
    failing_import("soundfile", ImportError("No module named 'soundfile'"))
    way = "wanted WAV, MP3, FLAC, Ogg" if kind == "MP4/M4A" else r"wavalign-fast\[audio\]"
    with pytest.raises(UserError, match=rf"q: the file is {kind}.*{way}.*ffmpeg -i FILE FILE\.wav"):
        read_wave(path)


def test_wave_files_and_noise_are_of_no_other_format(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(wave_bytes(TONE, RATE))
    assert as_wave_bytes(path) == path.read_bytes()
    for head in (
        path.read_bytes()[:12],
        b"",
        b"\xff\xff\xff\xff",
        b"\xff\xf1\x50\x80",
        b"\xfe\xff",
    ):
        assert format_of(head) is None
