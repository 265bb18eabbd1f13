"""WAV files: every encoding, and every way a file can be wrong."""

import struct
import wave

import numpy as np
import pytest
import torch

from wavalign_fast.errors import UserError
from wavalign_fast.speech.channels import read_mono, to_mono
from wavalign_fast.speech.wave_files import read_wave, wave_bytes, wave_info, write_wave

TAIL = bytes.fromhex("000000001000800000aa00389b71")


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"".join(
        name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)
        for name, data in chunks
    )
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body


def fmt(kind: int, channels: int, rate: int, bits: int, *, extensible: bool = False) -> bytes:
    block = channels * bits // 8
    first = 0xFFFE if extensible else kind
    fields = struct.pack("<HHIIHH", first, channels, rate, rate * block, block, bits)
    if extensible:
        fields += struct.pack("<HHI", 22, bits, 0) + struct.pack("<H", kind) + TAIL
    return fields


# Sample values on two channels, and their bytes in each encoding.
VALUES = [[0.0, -1.0, 0.5], [0.25, -0.5, -0.25]]
FRAMES = [value for frame in zip(*VALUES, strict=True) for value in frame]


def encoded(kind: int, bits: int) -> bytes:
    if kind == 3:
        return struct.pack("<6f" if bits == 32 else "<6d", *FRAMES)
    if bits == 8:
        return bytes(int(value * 128) + 128 for value in FRAMES)
    whole = [int(value * 2 ** (bits - 1)) for value in FRAMES]
    return b"".join(value.to_bytes(bits // 8, "little", signed=True) for value in whole)


@pytest.mark.parametrize("extensible", [False, True])
@pytest.mark.parametrize(("kind", "bits"), [(1, 8), (1, 16), (1, 24), (1, 32), (3, 32), (3, 64)])
def test_every_encoding_is_read(tmp_path, kind, bits, extensible):
    header = fmt(kind, 2, 22050, bits, extensible=extensible)
    path = tmp_path / "a.wav"
    path.write_bytes(riff((b"LIST", b"odd"), (b"fmt ", header), (b"data", encoded(kind, bits))))
    read, rate = read_wave(path)
    assert (read.dtype, rate, read.is_contiguous()) == (torch.float32, 22050, True)
    assert read.tolist() == VALUES
    info = wave_info(path)
    assert (info.channels, info.frames, info.bits, info.sample_rate) == (2, 3, bits, 22050)
    assert info.seconds == 3 / 22050


def test_written_files_are_16_bit_pcm_and_clipped(tmp_path):
    write_wave(tmp_path / "a.wav", np.array([0.0, 0.5, -3.0, 1.0, np.nan]), 16000)
    with wave.open(str(tmp_path / "a.wav")) as file:
        assert (file.getsampwidth(), file.getnchannels(), file.getframerate()) == (2, 1, 16000)
        pcm = np.frombuffer(file.readframes(5), "<i2").tolist()
    assert pcm == [0, 16384, -32768, 32767, 0]


def test_16_bit_samples_keep_their_bits():
    pcm = torch.arange(-32768, 32768, dtype=torch.int32).view(2, -1)
    content = wave_bytes(pcm / 32768, 8000)
    again, rate = read_wave(content)
    assert rate == 8000 and torch.equal((again * 32768).int(), pcm)
    assert wave_bytes(again, rate) == content


def test_a_wave_without_samples_can_be_written_but_not_read():
    with pytest.raises(UserError, match="WAV data: the file has no samples"):
        read_wave(wave_bytes(torch.zeros(0), 16000))
    with pytest.raises(ValueError, match=r"shape \(1, 1, 4\), wanted \[N\]"):
        wave_bytes(torch.zeros(1, 1, 4), 16000)


def test_a_stream_of_unknown_length_is_read_to_its_end():
    content = bytearray(wave_bytes([0.5, 0.25], 16000))
    content[40:44] = b"\xff\xff\xff\xff"
    assert read_wave(bytes(content))[0].tolist() == [[0.5, 0.25]]


GOOD = wave_bytes([0.5, 0.25], 16000)
BAD = {
    "0 bytes": b"",
    "starts with b'this is not ', wanted a WAV file": b"this is not audio\n",
    "starts with b'RIFF....AIFF'": b"RIFF....AIFFxxxx",
    r"cut off: it has 20 bytes and no header": GOOD[:20].replace(b"fmt ", b"abcd"),
    "the header is cut off: 0 bytes": GOOD[:20],
    "cut off: it has 36 bytes and no samples": GOOD[:36],
    "cut off: 3 bytes of samples, wanted 4": GOOD[:-1],
    "no samples, wanted at least one frame": riff((b"fmt ", fmt(1, 1, 8000, 16)), (b"data", b"")),
    "come before the header": riff((b"data", b"12"), (b"fmt ", fmt(1, 1, 8000, 16))),
    "more than 4 GB": b"RF64" + GOOD[4:],
    "µ-law of 8 bits, wanted PCM": riff((b"fmt ", fmt(7, 1, 8000, 8)), (b"data", b"12")),
    "PCM of 12 bits": riff((b"fmt ", fmt(1, 1, 8000, 12)), (b"data", b"12")),
    "0 channels at 8000 Hz": riff((b"fmt ", fmt(1, 0, 8000, 16)), (b"data", b"12")),
    "1 channels at 0 Hz": riff((b"fmt ", fmt(1, 1, 0, 16)), (b"data", b"12")),
    "3 bytes a frame, wanted 2": riff(
        (b"fmt ", fmt(1, 1, 8000, 16)[:12] + struct.pack("<HH", 3, 16)), (b"data", b"123")
    ),
    "names no known encoding": riff(
        (b"fmt ", fmt(1, 1, 8000, 16, extensible=True)[:-1] + b"?"), (b"data", b"12")
    ),
    "a sample is nan": riff(
        (b"fmt ", fmt(3, 1, 8000, 32)), (b"data", struct.pack("<2f", 0, float("nan")))
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_a_bad_file_is_refused_with_its_name_and_fault(tmp_path, message):
    path = tmp_path / "bad.wav"
    path.write_bytes(BAD[message])
    with pytest.raises(UserError, match=rf"bad\.wav: .*{message}"):
        read_wave(path)


def test_a_missing_file_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"gone\.wav: no such file"):
        wave_info(tmp_path / "gone.wav")


def test_channels_become_one():
    both = torch.tensor([[1.0, 0.0], [0.0, 0.5]])
    assert to_mono(both).tolist() == [0.5, 0.25]
    assert to_mono(both, 1).tolist() == [0.0, 0.5]
    assert to_mono(both[0], 0).tolist() == [1.0, 0.0]
    with pytest.raises(UserError, match="channel 2 given, wanted 0 to 1"):
        to_mono(both, 2)
    with pytest.raises(UserError, match="channel 'left' given, wanted 'mean' or a number"):
        to_mono(both, "left")


def test_a_file_is_read_as_mono_at_the_wanted_rate(tmp_path):
    write_wave(tmp_path / "a.wav", torch.stack([torch.full([800], 0.5), torch.zeros(800)]), 8000)
    assert read_mono(tmp_path / "a.wav", 8000).tolist() == [0.25] * 800
    assert read_mono(tmp_path / "a.wav", 16000, 1).tolist() == [0.0] * 1600
    with pytest.raises(UserError, match=r"a\.wav: channel 2 given"):
        read_mono(tmp_path / "a.wav", 16000, 2)
