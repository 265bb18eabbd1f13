"""What every codec keeps, whoever wrote its code."""

import random
import sys

import numpy as np
import pytest
import torch

from tests.speech.codecs import fake_step_audio, made, service
from wavalign_fast.speech.codec import CodecError
from wavalign_fast.speech.codecs import KINDS


@pytest.fixture(scope="module")
def codecs(tmp_path_factory):
    """Makes each codec once; the first call of some is slow."""
    packages = fake_step_audio()
    sys.modules.update(packages)
    made_ones = {}
    with service() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("no_proxy", "*")
        url = f"http://127.0.0.1:{server.server_port}/base"

        def get(kind):
            if kind not in made_ones:
                made_ones[kind] = made(kind, tmp_path_factory.mktemp(kind), url)
            return made_ones[kind]

        yield get
    made_ones["subprocess"].close()
    for name in packages:
        del sys.modules[name]


@pytest.fixture(params=sorted(KINDS))
def codec(request, codecs):
    return codecs(request.param)


def rows(codec, *lengths):
    generator = torch.Generator().manual_seed(sum(lengths))
    return [torch.randint(0, codec.codebook_size, (n,), generator=generator) for n in lengths]


def tone(samples=3000):
    return 0.3 * torch.sin(torch.arange(samples) / 5)


def states():
    numpy = np.random.get_state()
    return random.getstate(), numpy[1].tolist(), numpy[2], torch.get_rng_state().tolist()


def test_facts_are_stated(codec):
    assert codec.codebook_size > 1 and codec.codes_per_second > 1 and codec.sample_rate >= 8000
    assert codec.name and codec.identity and codec.channel == "mean"


def test_nothing_becomes_nothing(codec):
    nothing, wave = codec.decode([torch.zeros(0, dtype=torch.int64), *rows(codec, 2)])
    assert nothing.shape == (0,) and nothing.dtype == torch.float32 and len(wave)
    assert codec.decode([]) == []
    codes = codec.encode(torch.zeros(0), 16000)
    assert codes.shape == (0,) and codes.dtype == torch.int64


def test_a_code_outside_the_codebook_is_named(codec):
    size = codec.codebook_size
    with pytest.raises(CodecError, match=rf"code {size} at place 1 of sequence 1, wanted 0 to"):
        codec.decode([torch.tensor([0]), torch.tensor([size - 1, size])])
    with pytest.raises(CodecError, match="code -1 at place 0 of sequence 0"):
        codec.decode([torch.tensor([-1])])


def test_a_batch_is_its_singles_and_outputs_repeat(codec):
    batch = rows(codec, 3, 1, 7)
    waves = codec.decode(batch)
    for row, wave in zip(batch, waves, strict=True):
        torch.testing.assert_close(codec.decode([row])[0], wave, rtol=0, atol=2e-5)
    for wave, again in zip(waves, codec.decode(batch), strict=True):
        assert torch.equal(wave, again)
    assert torch.equal(codec.encode(tone(), 16000), codec.encode(tone(), 16000))


def test_waves_and_codes_are_what_they_should_be(codec):
    for wave in codec.decode(rows(codec, 4, 9)):
        assert wave.dtype == torch.float32 and wave.ndim == 1 and wave.device.type == "cpu"
        assert wave.isfinite().all() and 0 < wave.abs().max() <= 1
        assert not wave.is_inference()
    codes = codec.encode(tone(), 16000)
    assert codes.dtype == torch.int64 and codes.ndim == 1 and not codes.is_inference()
    expected = 3000 / 16000 * codec.codes_per_second
    assert expected - 1 <= len(codes) <= expected + 1
    assert codes.min() >= 0 and codes.max() < codec.codebook_size


def test_channels_are_averaged(codec):
    stereo = torch.stack([tone() * 1.5, tone() * 0.5])
    assert torch.equal(codec.encode(stereo, 16000), codec.encode(stereo.mean(0), 16000))
    with pytest.raises(CodecError, match=r"a wave is torch.float32 \(1, 1, 5\)"):
        codec.encode(torch.zeros(1, 1, 5), 16000)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_global_random_states_stay(codecs, kind, tmp_path):
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    before = states()
    if kind not in ("subprocess", "http"):  # made anew, not only called
        codec = made(kind, tmp_path, "http://127.0.0.1:1")
    else:
        codec = codecs(kind)
    codec.decode(rows(codec, 3, 2))
    codec.encode(tone(), 16000)
    with pytest.raises(CodecError):
        codec.decode([torch.tensor([-1])])
    assert states() == before
