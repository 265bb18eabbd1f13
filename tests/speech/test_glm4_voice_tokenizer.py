"""The native tokenizer of GLM-4-Voice against its own code, and what it refuses."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.speech.glm4_voice import TOKENIZER, golden
from wavalign_fast.errors import UserError
from wavalign_fast.speech.glm4_voice.codec import Glm4VoiceCodec
from wavalign_fast.speech.glm4_voice.tokenizer import SpeechTokenizer


@pytest.fixture(scope="module")
def tokenizer() -> SpeechTokenizer:
    return SpeechTokenizer(TOKENIZER)


def waves() -> list[torch.Tensor]:
    return [golden(TOKENIZER)[f"{i}.wave_int16"].float() / 32768 for i in range(2)]


@pytest.mark.parametrize("index", [0, 1])
def test_codes_are_those_of_the_published_code(tokenizer, index):
    case, wave = golden(TOKENIZER), waves()[index]
    wanted = case[f"{index}.hidden"]
    torch.testing.assert_close(tokenizer.hidden(wave), wanted, rtol=0, atol=1e-5)
    codes = tokenizer.encode(wave)
    assert torch.equal(codes, case[f"{index}.codes"]) and codes.dtype == torch.int64


def test_pieces_of_30_s_are_encoded_apart(tokenizer):
    wave = torch.cat(waves() * 5)[: 30 * 16000 + 1500]
    codes = tokenizer.encode(wave)
    assert len(codes) == 375 + 2  # a begun code counts
    assert torch.equal(codes[375:], tokenizer.encode(wave[30 * 16000 :]))
    assert torch.equal(codes[:375], tokenizer.encode(wave[: 30 * 16000]))
    assert len(tokenizer.encode(wave[:1])) == 1
    assert tokenizer.encode(wave[:0]).tolist() == []


def test_a_block_of_4_s_does_not_hear_the_next(tokenizer):
    model = tokenizer.model
    features = torch.randn(128, 600, generator=torch.Generator().manual_seed(0))
    changed = features.clone()
    changed[:, 400:] = 0
    with torch.inference_mode():
        one, other = model.hidden(features, 600), model.hidden(changed, 600)
        padded = model.hidden(features, 470)
    assert torch.equal(one[:50], other[:50]) and not torch.equal(one[50], other[50])
    # What is only padding is heard by none: frames from 470 on, in the second block.
    heard = features.clone()
    heard[:, 480:] = 0
    with torch.inference_mode():
        again = model.hidden(heard, 470)
    torch.testing.assert_close(again[:58], padded[:58], rtol=0, atol=1e-6)
    assert (padded[50:58] - one[50:58]).abs().max() > 1e-4


def test_a_whole_whisper_serves_too(tokenizer, tmp_path):
    shutil.copytree(TOKENIZER, tmp_path, dirs_exist_ok=True)
    whole = {f"model.encoder.{k}": v for k, v in load_file(TOKENIZER / "model.safetensors").items()}
    whole["model.encoder.layers.2.fc1.bias"] = torch.zeros(64)
    whole["model.encoder.layer_norm.weight"] = torch.zeros(32)
    whole["model.decoder.x"] = torch.zeros(1)
    save_file(whole, tmp_path / "model.safetensors")
    wave = waves()[1]
    assert torch.equal(SpeechTokenizer(tmp_path).encode(wave), tokenizer.encode(wave))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pooling_type": "max"}, "pooling_type is 'max', implemented is 'avg'"),
        ({"encoder_causal_attention": True}, "encoder_causal_attention is True"),
        ({"pooling_position": 1}, "are 1 and 2, implemented is equal"),
        ({"d_model": None}, "d_model is None, wanted a number from 1"),
        ({"max_source_positions": 750}, "max_source_positions is 750, wanted 1500 for 30 s"),
        ({"encoder_ffn_dim": 32}, r"layers\.0\.fc1\.weight is \[64, 32\], wanted \[32, 32\]"),
        ({"quantize_position": 3, "pooling_position": 3}, r"layers\.2\.fc1\.bias is missing"),
        ({"num_mel_bins": 80}, "feature_size is 128, wanted 80"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(tmp_path, changes, message):
    shutil.copytree(TOKENIZER, tmp_path, dirs_exist_ok=True)
    config = json.loads((TOKENIZER / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(UserError, match=message):
        SpeechTokenizer(tmp_path)


def test_damaged_and_unknown_weights_are_refused(tmp_path):
    shutil.copytree(TOKENIZER, tmp_path, dirs_exist_ok=True)
    weights = load_file(TOKENIZER / "model.safetensors")
    save_file(weights | {"adapter.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"adapter\.weight is not known"):
        SpeechTokenizer(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"model\.safetensors: SafetensorError"):
        SpeechTokenizer(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors"):
        SpeechTokenizer(tmp_path)


def test_the_codec_takes_any_rate_and_the_channel_it_is_told(tokenizer):
    wave = waves()[1]
    stereo = torch.stack([wave, torch.zeros_like(wave)])
    left = Glm4VoiceCodec(tokenizer=TOKENIZER, channel=0)
    assert torch.equal(left.encode(stereo, 16000), tokenizer.encode(wave))
    mean = Glm4VoiceCodec(tokenizer=TOKENIZER)
    assert torch.equal(mean.encode(stereo, 16000), tokenizer.encode(wave / 2))
    assert len(mean.encode(stereo, 24000)) == 12  # 21 280 samples at 24 kHz
    with pytest.raises(UserError, match="cannot decode: no decoder given"):
        mean.decode([torch.tensor([1])])
    with pytest.raises(UserError, match="a sample to encode is nan"):
        mean.encode(torch.tensor([0.0, torch.nan]), 16000)


def test_the_identity_follows_the_weights(tmp_path):
    shutil.copytree(TOKENIZER, tmp_path, dirs_exist_ok=True)
    same = Glm4VoiceCodec(tokenizer=tmp_path)
    assert same.identity == Glm4VoiceCodec(tokenizer=TOKENIZER).identity
    weights = load_file(TOKENIZER / "model.safetensors")
    weights["conv1.bias"] += 1
    save_file(weights, tmp_path / "model.safetensors")
    assert Glm4VoiceCodec(tokenizer=tmp_path).identity != same.identity
