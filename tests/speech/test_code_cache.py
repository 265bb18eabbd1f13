"""Codes are kept by content, codec and channel, and many files are encoded in parallel."""

import json
import threading
from pathlib import Path

import pytest
import torch

from wavalign_fast.errors import UserError
from wavalign_fast.speech.code_cache import CodeCache
from wavalign_fast.speech.codec import CodecError
from wavalign_fast.speech.encode_files import MOST_FAILURES, encode_files
from wavalign_fast.speech.resample import resample
from wavalign_fast.speech.toy_codec import ToyCodec
from wavalign_fast.speech.wave_files import write_wave


class Counting(ToyCodec):
    """Counts what it encodes, and fails when told."""

    def __init__(self, **options):
        super().__init__(**options)
        self.calls = 0
        self.broken = False
        self._lock = threading.Lock()

    def encode(self, wave, sample_rate):
        with self._lock:
            self.calls += 1
        if self.broken:
            raise CodecError("toy: the service is gone")
        return super().encode(wave, sample_rate)


def speech(path: Path, codes: list[int], channels: int = 1) -> Path:
    wave = ToyCodec().decode([torch.tensor(codes)])[0]
    write_wave(path, torch.stack([wave] + [wave * 0] * (channels - 1)), 16000)
    return path


def test_a_file_is_encoded_once_whatever_it_is_called(tmp_path):
    codec, cache = Counting(), CodeCache(tmp_path / "cache")
    file = speech(tmp_path / "a.wav", [5, 700, 16383])
    first = cache.codes(file, codec)
    assert (first.codes.tolist(), first.origin) == ([5, 700, 16383], "codec")
    moved = file.rename(tmp_path / "b.wav")
    again = cache.codes(moved, codec)
    assert (again.codes.tolist(), again.origin) == ([5, 700, 16383], "cache")
    assert again.codes.dtype == torch.int64 and codec.calls == 1
    assert [path.suffix for path in cache.directory.rglob("*.*")] == [".json"]


def test_another_file_codec_or_channel_is_encoded_anew(tmp_path):
    cache = CodeCache(tmp_path / "cache")
    file = speech(tmp_path / "a.wav", [5, 700], channels=2)
    codecs = [Counting(), Counting(codebook_size=600), Counting(channel=0), Counting(channel=1)]
    found = [cache.codes(file, codec) for codec in codecs]
    assert [one.origin for one in found] == ["codec"] * 4
    assert found[0].codes.tolist() == [5, 700] and found[1].codes.tolist() == [5, 100]
    speech(file, [6, 700], channels=2)
    assert cache.codes(file, codecs[0]).codes.tolist() == [6, 700]


@pytest.mark.parametrize("content", ["[1, 2", "{}", "[1, 16384]", "[1, -1]", "[1.5]", "[true]"])
def test_a_damaged_entry_is_made_anew(tmp_path, content, caplog):
    codec, cache = Counting(), CodeCache(tmp_path)
    file = speech(tmp_path / "a.wav", [5, 700])
    cache.codes(file, codec)
    cache.path(file, codec).write_text(content)
    found = cache.codes(file, codec)
    assert (found.codes.tolist(), found.origin) == ([5, 700], "codec")
    assert "is damaged" in caplog.text
    assert json.loads(cache.path(file, codec).read_text()) == [5, 700]


def test_codes_of_vita_audio_serve_where_they_fit(tmp_path, caplog):
    codec, cache = Counting(), CodeCache(tmp_path / "cache")
    file = speech(tmp_path / "a.wav", [5, 700, 9])
    (tmp_path / "a_glm4voice.json").write_text("[1, 2, 3]")
    assert cache.codes(file, codec).codes.tolist() == [5, 700, 9]  # the toy codec is not VITA's
    codec.vita_caches, codec.identity = True, "glm"
    found = cache.codes(file, codec)
    assert (found.codes.tolist(), found.origin) == ([1, 2, 3], "vita")
    assert cache.codes(file, codec).origin == "cache"
    codec.identity = "another"
    (tmp_path / "a_glm4voice.json").write_text("[1, 2, 3, 4, 5]")
    assert cache.codes(file, codec).origin == "codec"
    assert "(5 codes for a wave of 3.0): a.wav is encoded" in caplog.text


def test_codes_of_vita_audio_are_those_of_channel_0(tmp_path):
    file = speech(tmp_path / "a.wav", [5, 700, 9], channels=2)
    (tmp_path / "a_glm4voice.json").write_text("[1, 2, 3]")
    mean, first = Counting(), Counting(channel=0)
    mean.vita_caches = first.vita_caches = True
    cache = CodeCache(tmp_path / "cache")
    assert cache.codes(file, mean).origin == "codec"
    assert cache.codes(file, first).origin == "vita"


def test_many_files_are_encoded_and_a_second_run_encodes_only_the_rest(tmp_path):
    codec, cache = Counting(), CodeCache(tmp_path / "cache")
    files = [speech(tmp_path / f"{i}.wav", [i, i + 1]) for i in range(20)]
    first = encode_files(files[:12], codec, cache, workers=3)
    assert (dict(first.origins), first.codes, first.failed) == ({"codec": 12}, 24, {})
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"not audio")
    steps = []
    second = encode_files(
        [*files, bad, files[0], tmp_path / "gone.wav"],
        codec,
        cache,
        workers=3,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert dict(second.origins) == {"cache": 12, "codec": 8} and second.codes == 40
    assert steps == [(i, 22) for i in range(1, 23)] and codec.calls == 20
    assert set(second.failed) == {bad, tmp_path / "gone.wav"}
    assert "wanted a WAV file" in second.failed[bad]
    for i in (0, 19):
        assert cache.codes(files[i], codec).codes.tolist() == [i, i + 1]


def test_a_codec_that_always_fails_ends_the_run(tmp_path):
    codec, cache = Counting(), CodeCache(tmp_path / "cache")
    files = [speech(tmp_path / f"{i}.wav", [i]) for i in range(MOST_FAILURES + 20)]
    codec.broken = True
    with pytest.raises(CodecError, match=r"\.wav: toy: the service is gone"):
        encode_files(files, codec, cache, workers=1)
    assert codec.calls <= MOST_FAILURES + 4
    few = encode_files(files[: MOST_FAILURES - 1], codec, cache)
    assert len(few.failed) == MOST_FAILURES - 1
    with pytest.raises(UserError, match="workers is 0"):
        encode_files(files, codec, cache, workers=0)


def test_the_toy_codec_keeps_its_codes_at_any_rate():
    codec = ToyCodec()
    codes = torch.randint(0, 16384, (40,), generator=torch.Generator().manual_seed(0))
    (wave,) = codec.decode([codes])
    assert torch.equal(codec.encode(wave, 16000), codes)
    assert torch.equal(codec.encode(resample(wave, 16000, 24000), 24000), codes)
    with pytest.raises(UserError, match="codebook_size is 0, wanted 1 to 16384"):
        ToyCodec(codebook_size=0)
