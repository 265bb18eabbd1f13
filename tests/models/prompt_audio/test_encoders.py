"""Encoders of prompt audio reproduce the families' own, stay frozen, and see one clip each."""

import json
import shutil

import pytest
import torch
from transformers import WhisperFeatureExtractor

from wavalign_fast.errors import DamagedFileError, UserError
from wavalign_fast.models.prompt_audio import (
    CovoAudioEncoder,
    KimiAudioEncoder,
    StepAudio2Encoder,
    VitaAudioPlusEncoder,
)
from wavalign_fast.models.prompt_audio.encoder import with_prefix
from wavalign_fast.speech.resample import resample

from .golden import from_int16, golden, noise

WHISPER = {
    "d_model": 10, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 12,
    "num_mel_bins": 80, "max_source_positions": 1500,
}  # fmt: skip


def vita():
    directory, config, stored, _ = golden("vita_audio_plus")
    return VitaAudioPlusEncoder.of(stored, config, directory)


def step():
    _, config, stored, _ = golden("step_audio_2")
    return StepAudio2Encoder.of(stored, config["audio_encoder_config"])


def covo():
    _, config, stored, _ = golden("covo_audio")
    return CovoAudioEncoder.of(stored, config)


def kimi(config=WHISPER):
    _, model_config, stored, _ = golden("kimi_audio")
    torch.manual_seed(0)
    whisper = KimiAudioEncoder(config, model_config).encoder.state_dict()
    return KimiAudioEncoder.of(stored, model_config, whisper, config)


ENCODERS = {"vita": vita, "step": step, "covo": covo, "kimi": kimi}


def close(found, wanted, atol=1e-5):
    torch.testing.assert_close(found, wanted, rtol=0, atol=atol)


def test_vita_encodes_as_published():
    encoder, expected = vita(), golden("vita_audio_plus")[3]
    for number in range(3):
        (found,) = encoder.encode(expected[f"audio.{number}.wave"])
        close(found, expected[f"audio.{number}.projected"])


def test_clips_of_a_padded_batch_are_encoded_as_alone():
    encoder, expected = vita(), golden("vita_audio_plus")[3]
    clips = [expected[f"audio.{number}.features"] for number in range(3)]
    for number, found in enumerate(encoder.encoder(clips)):
        close(found, expected[f"audio.{number}.encoded"])


def test_step_encodes_each_clip_as_published():
    encoder, expected = step(), golden("step_audio_2")[3]
    for number in range(3):
        (found,) = encoder.encode(from_int16(expected[f"audio.{number}.wave_int16"]))
        close(found, expected[f"audio.{number}.embeds"])


def test_step_encodes_pieces_of_25_seconds_alone():
    encoder, clip = step(), noise(25 * 16_000 + 3000)
    pieces = encoder.encode(clip)
    assert [len(piece) for piece in pieces] == [313, 3]
    assert torch.equal(pieces[0], encoder.encode(clip[: 25 * 16_000])[0])
    assert torch.equal(pieces[1], encoder.encode(clip[25 * 16_000 :])[0])
    # 100 samples are no embedding: no empty piece is left behind.
    assert len(encoder.encode(clip[: 25 * 16_000 + 100])) == 1


def test_covo_encodes_as_published():
    encoder, expected = covo(), golden("covo_audio")[3]
    for number in range(2):
        (found,) = encoder.encode(from_int16(expected[f"{number}.wave_int16"]))
        close(found, expected[f"{number}.audio_embeds"])


@pytest.mark.parametrize(
    ("samples", "count"), [(160, 1), (2719, 1), (2720, 2), (160 * 3000, 188), (160 * 3008, 188)]
)
def test_covo_halves_the_frames_four_times_and_rounds_up(samples, count):
    encoder = covo()
    (found,) = encoder.encode(noise(samples))
    assert len(found) == count


def test_covo_goes_by_way_of_24_khz():
    encoder, clip = covo(), noise(10_000)
    assert encoder.resampled(clip, 16_000) is clip
    # 10 000 samples at 44.1 kHz are 5443 at 24 kHz: 22 whole frames of 10 ms.
    at_24k = resample(clip, 44_100, 24_000)[: 22 * 240]
    assert torch.equal(encoder.resampled(clip, 44_100), resample(at_24k, 24_000, 16_000))
    # 10 000 at 24 kHz are 41 frames, padded to 42 of them.
    padded = torch.nn.functional.pad(clip[: 41 * 240], (0, 240))
    assert torch.equal(encoder.resampled(clip, 24_000), resample(padded, 24_000, 16_000))


@pytest.mark.parametrize("samples", [1280, 1281, 30 * 16_000 + 1])
def test_kimi_stacks_four_frames_of_whisper(samples):
    encoder, clip = kimi(), noise(samples)
    extractor = WhisperFeatureExtractor(feature_size=80)
    kept = []
    for piece in clip.split(30 * 16_000):
        features = extractor(piece.numpy(), sampling_rate=16_000, return_tensors="pt")
        with torch.no_grad():
            frames = encoder.encoder(features.input_features).last_hidden_state[0]
        count = (len(piece) - 1) // 1280 + 1
        kept += [frames[4 * n : 4 * n + 4].flatten() for n in range(count)]
    weights = with_prefix(golden("kimi_audio")[2], "model.vq_adaptor.layers.")
    x = torch.stack(kept) @ weights["0.weight"].T + weights["0.bias"]
    x = x * torch.sigmoid(x) @ weights["3.weight"].T + weights["3.bias"]
    x = (x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + 1e-6).sqrt()
    (found,) = encoder.encode(clip)
    close(found, x * weights["4.weight"] + weights["4.bias"])


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_stays_frozen(name):
    encoder, clip = ENCODERS[name](), noise(3000)
    before = encoder.encode(clip)
    torch.manual_seed(1)
    encoder.train()
    with torch.autocast("cpu", torch.bfloat16):
        again = encoder.encode(clip)
    for first, second in zip(before, again, strict=True):
        assert torch.equal(first, second) and first.dtype == torch.float32
    assert not any(module.training for module in encoder.modules())
    assert not any(weight.requires_grad for weight in encoder.parameters())
    assert not before[0].requires_grad


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (torch.zeros(2, 800), r"torch.float32 \(2, 800\), want a float vector"),
        (torch.zeros(800, dtype=torch.int16), "want a float vector"),
        (torch.full((800,), float("nan")), "a sample is not finite"),
        (torch.zeros(0), "0 samples at 16000 Hz are too short|at least 400 samples"),
    ],
)
@pytest.mark.parametrize("name", ENCODERS)
def test_what_is_no_clip_is_refused(name, clip, message):
    with pytest.raises(UserError, match=message):
        ENCODERS[name]().encode(clip)


@pytest.mark.parametrize(
    ("build", "family", "weight"),
    [
        (lambda t, c: VitaAudioPlusEncoder.of(t, c, golden("vita_audio_plus")[0]),
         "vita_audio_plus", "model.audio_model.model.encoder.tp_norm.bias"),
        (lambda t, c: StepAudio2Encoder.of(t, c["audio_encoder_config"]),
         "step_audio_2", "encoder.blocks.1.mlp.2.weight"),
        (CovoAudioEncoder.of, "covo_audio", "audio_adapter.downsample_layers.2.conv1d.bias"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_named(build, family, weight):
    _, config, stored, _ = golden(family)
    place, last = weight.rsplit(".", 1)
    short = weight.split("encoder.", 1)[-1].split("audio_adapter.")[-1]
    without = {name: value for name, value in stored.items() if name != weight}
    with pytest.raises(UserError, match=rf"missing \['\S*{short}'\]"):
        build(without, config)
    with pytest.raises(UserError, match=rf"left over \['\S*extra{last}'\]"):
        build(stored | {f"{place}.extra{last}": torch.zeros(1)}, config)
    with pytest.raises(UserError, match=rf"{short} is \(1, 7\), want"):
        build(stored | {weight: torch.zeros(1, 7)}, config)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("lfr_n: 6", "lfr_n: 5", "frontend_conf: lfr_n is 5, want 6"),
        ("sanm_shfit: 0", "sanm_shfit: 1", "sanm_shfit is 1, want 0"),
        ("attention_heads: 4", "attention_heads: 5", "want heads that divide"),
        ("output_size: 32", "output_size: x", "output_size is 'x', want a whole number"),
        ("encoder: Sense", "encoder: Other", "encoder is 'OtherVoiceEncoderSmall', want"),
        ("encoder_conf:", "other:", "want mappings encoder_conf and frontend_conf"),
    ],
)
def test_a_configuration_of_another_computation_is_refused(tmp_path, old, new, message):
    directory, config, stored, _ = golden("vita_audio_plus")
    text = (directory / "config.yaml").read_text()
    assert old in text
    (tmp_path / "config.yaml").write_text(text.replace(old, new))
    shutil.copy(directory / "am.mvn", tmp_path)
    with pytest.raises(UserError, match=message):
        VitaAudioPlusEncoder.of(stored, config, tmp_path)


def test_missing_side_files_are_named(tmp_path):
    _, config, stored, _ = golden("vita_audio_plus")
    with pytest.raises(DamagedFileError, match=r"no .*config\.yaml: .* needs config\.yaml and am"):
        VitaAudioPlusEncoder.of(stored, config, tmp_path)


def test_whisper_of_another_width_is_refused():
    config = golden("kimi_audio")[1]
    with pytest.raises(UserError, match=r"width is 12, want a quarter of .* which is 40"):
        KimiAudioEncoder(WHISPER | {"d_model": 12}, config)
    with pytest.raises(UserError, match="activation_function is 'relu', want 'gelu'"):
        kimi(WHISPER | {"activation_function": "relu"})
    with pytest.raises(UserError, match="encoder_layers is None, want a whole number"):
        kimi(json.loads(json.dumps({k: v for k, v in WHISPER.items() if k != "encoder_layers"})))


def test_real_sizes_have_the_right_number_of_weights():
    """SenseVoiceSmall without its head, and Step-Audio 2 mini's and Whisper-large-v3's encoders."""
    from wavalign_fast.models.prompt_audio.sense_voice import Sizes

    step_config = {
        "n_mels": 128, "n_audio_ctx": 1500, "n_audio_state": 1280, "n_audio_head": 20,
        "n_audio_layer": 32, "llm_dim": 3584, "kernel_size": 3, "adapter_stride": 2,
    }  # fmt: skip
    whisper = {
        "d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20,
        "encoder_ffn_dim": 5120, "num_mel_bins": 128, "max_source_positions": 1500,
    }  # fmt: skip
    model = {"hidden_size": 3584, "kimia_adaptor_input_dim": 5120, "rms_norm_eps": 1e-6}
    with torch.device("meta"):
        vita = VitaAudioPlusEncoder(Sizes(560, 512, 4, 2048, 50, 20, 11), 3584)
        step = StepAudio2Encoder(step_config, inner=2048)
        kimi = KimiAudioEncoder(whisper, model)

    def count(module):
        return sum(weight.numel() for weight in module.parameters())

    assert count(kimi.encoder) == 636_968_960
    assert count(step.encoder) == 636_968_960
    layer = 4 * 512**2 + 4 * 512 + 11 * 512 + 2 * 512 * 2048 + 2048 + 512 + 4 * 512
    first = layer + 48 * 3 * 512 + 2 * 48
    assert count(vita.encoder) == first + 69 * layer + 4 * 512 + 16 * 560
    assert count(vita.projection) == 1024 + 512 * 3584 + 3584**2
