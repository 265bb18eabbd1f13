"""The native decoder of GLM-4-Voice against its own code, in batches, and what it refuses."""

import random
import shutil

import numpy as np
import pytest
import torch

from tests.speech.glm4_voice import DECODER, TOKENIZER, golden
from wavalign_fast.errors import UserError
from wavalign_fast.speech.glm4_voice.codec import Glm4VoiceCodec
from wavalign_fast.speech.glm4_voice.decoder import SpeechDecoder
from wavalign_fast.speech.glm4_voice.decoder_config import UNetSizes, read_decoder_config
from wavalign_fast.speech.glm4_voice.hift import folded
from wavalign_fast.speech.glm4_voice.ragged import Lengths
from wavalign_fast.speech.glm4_voice.unet import INPUTS, UNet


@pytest.fixture(scope="module")
def decoder() -> SpeechDecoder:
    return SpeechDecoder(DECODER)


def close(seen: torch.Tensor, wanted: torch.Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(seen, wanted, rtol=0, atol=atol)


@torch.inference_mode()
def test_every_stage_is_that_of_the_published_code(decoder):
    case = golden(DECODER)
    mu, lengths = decoder.flow.conditions([case["codes"]])
    close(mu, case["mu"])
    assert torch.equal(decoder.flow.speaker()[None], case["speaker"])
    start, phases, noise = (part[None] for part in decoder._noise(lengths.longest))
    assert torch.equal(start, case["noise"])
    close(decoder.flow.mel(case["mu"], case["noise"], lengths, steps=10)[0], case["mel"])
    mel = case["mel"][None]
    close(decoder.hift.pitch(mel, lengths), case["f0"], 2e-5)  # up to 120 Hz
    # From the stored pitch: the phase sums its error over all samples.
    close(decoder.hift.excitation(case["f0"], phases, noise), case["source"], 1e-6)
    close(decoder.hift.wave(mel, case["source"], lengths)[0], case["wave"], 1e-6)


def test_the_wave_of_codes_is_that_of_the_published_code(decoder):
    case = golden(DECODER)
    (wave,) = decoder.decode([case["codes"]])
    close(wave, case["wave"], 2e-5)


def test_a_batch_is_its_singles():
    codes = golden(DECODER)["codes"]
    rows = [codes[:9], codes, codes[:1], codes.flip(0)[:20]]
    batched, single = (SpeechDecoder(DECODER, batch_size=n, steps=2) for n in (3, 1))
    waves = batched.decode(rows)
    assert [len(wave) for wave in waves] == [256 * n for n in (62, 213, 6, 137)]
    for wave, alone in zip(waves, single.decode(rows), strict=True):
        close(wave, alone, 2e-5)
    other = SpeechDecoder(DECODER, steps=2, seed=7).decode(rows[:1])[0]
    assert (other - waves[0]).abs().max() > 1e-3


@pytest.mark.parametrize("channels", [(16, 8, 24), (8,)])
def test_networks_of_other_depths_batch_as_well(channels):
    torch.manual_seed(0)
    net = UNet(UNetSizes(channels=channels, heads=2, head_width=4, transformers=2, middle_blocks=0))
    x, counts = torch.randn(3, INPUTS, 23), [23, 10, 1]
    with torch.inference_mode():
        time = net.time(torch.tensor(0.3))
        both = net(x, time, Lengths(counts, x.device))
        for index, count in enumerate(counts):
            alone = net(x[index : index + 1, :, :count], time, Lengths([count], x.device))
            close(both[index, :, :count], alone[0])


def test_global_random_states_stay_and_outputs_repeat():
    codes = [golden(DECODER)["codes"][:4]]
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    again = SpeechDecoder(DECODER, steps=1)
    assert torch.equal(again.decode(codes)[0], again.decode(codes)[0])
    Glm4VoiceCodec(tokenizer=TOKENIZER).encode(torch.zeros(400), 16000)
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]


def test_the_codec_checks_codes_and_leaves_out_empty_rows():
    codec = Glm4VoiceCodec(decoder=DECODER)
    assert (codec.codebook_size, codec.codes_per_second, codec.sample_rate) == (64, 12.5, 22050)
    nothing, wave = codec.decode([torch.zeros(0, dtype=torch.int64), torch.tensor([1, 2])])
    assert nothing.shape == (0,) and wave.shape == (256 * 13,)
    assert wave.isfinite().all() and wave.abs().max() <= 1 and wave.dtype == torch.float32
    assert codec.decode([]) == []
    with pytest.raises(UserError, match="glm4_voice: code 64 at place 1 of sequence 1, wanted 0 "):
        codec.decode([torch.tensor([1]), torch.tensor([63, 64])])
    with pytest.raises(UserError, match=r"sequence 0 is torch.float32 \(1,\), wanted whole"):
        codec.decode([torch.tensor([1.0])])
    with pytest.raises(UserError, match="cannot encode: no tokenizer given"):
        codec.encode(torch.zeros(5), 16000)
    with pytest.raises(UserError, match="neither tokenizer nor decoder"):
        Glm4VoiceCodec()


REFUSED = [
    ("use_cnn_module: False", "use_cnn_module: True", r"encoder\.use_cnn_module is True, impl"),
    ("macaron_style: False", "", r"encoder\.macaron_style is None, implemented is False"),
    ("rel_pos_espnet", "rel_pos", r"pos_enc_layer_type is 'rel_pos'"),
    ("BlockConformerEncoder", "ConformerEncoder", r"flow\.encoder\.!new is 'cosyvoice\.transf"),
    ("InterpolateRegulator", "Other", r"flow\.length_regulator\.!new"),
    ("[1, 1, 1, 1]", "[1, 2]", r"sampling_ratios is \[1, 2\], implemented is 1 each"),
    ("ConditionalDecoder", "CausalConditionalDecoder", r"estimator\.!new is"),
    ("act_fn: 'gelu'", "act_fn: 'snakebeta'", r"estimator\.act_fn is 'snakebeta'"),
    ("t_scheduler: 'cosine'", "t_scheduler: 'linear'", r"content\.t_scheduler is 'linear'"),
    ("sampling_rate: 22050", "sampling_rate: 24000", r"hift\.sampling_rate is 24000"),
    ("upsample_rates: [8, 8]", "upsample_rates: [8, 5]", "160 samples of a mel frame"),
    ("block_size: 25", "block_size: 2.5", r"block_size is 2\.5, wanted a whole number"),
    ("block_size: 25", "block_size: 25\n        gate: 3", r"flow\.encoder\.gate = 3: use the ad"),
    ("vocab_size: 64", "vocab_size: lots", "flow.vocab_size is 'lots', wanted a number"),
    ("vocab_size: 64", "vocab_size: !ref <a + 1>", "!ref '<a . 1>' is no name"),
    ("vocab_size: 64", "vocab_size: 32", r"input_embedding\.weight is \[64, 16\], wanted \[32, "),
    ("hift: ", "other: ", "hift is None, wanted a mapping"),
    ("flow: ", "flow: [", "config.yaml: not YAML"),
]


@pytest.mark.parametrize(("old", "new", "message"), REFUSED)
def test_what_is_not_implemented_is_refused_by_name(tmp_path, old, new, message):
    shutil.copytree(DECODER, tmp_path, dirs_exist_ok=True)
    text = (DECODER / "config.yaml").read_text()
    assert old in text
    (tmp_path / "config.yaml").write_text(text.replace(old, new))
    with pytest.raises(UserError, match=message):
        SpeechDecoder(tmp_path)


def test_references_are_followed_and_nothing_named_is_run(tmp_path):
    marker = tmp_path / "was_run"
    text = (DECODER / "config.yaml").read_text().replace("output_size: 80", "output_size: !ref <m>")
    text = f"m: !ref <n>\nn: 80\nseed: !apply:os.mkdir ['{marker}']\n" + text
    text += "open: !name:a.b\ndata: [\n  !ref <open>,\n  !ref <n> * 2\n]\n"  # as for training
    (tmp_path / "config.yaml").write_text(text)
    assert read_decoder_config(tmp_path / "config.yaml") == read_decoder_config(
        DECODER / "config.yaml"
    )
    assert not marker.exists()
    (tmp_path / "config.yaml").write_text("flow: !ref <m>\nm: !ref <flow>\n")
    with pytest.raises(UserError, match="references lead in a circle"):
        read_decoder_config(tmp_path / "config.yaml")


class Evil:
    def __reduce__(self):
        return print, ("run by a pickle",)


def test_a_pickle_that_names_code_is_refused(tmp_path, capsys):
    shutil.copytree(DECODER, tmp_path, dirs_exist_ok=True)
    torch.save({"x": Evil()}, tmp_path / "flow.pt")
    with pytest.raises(UserError, match=r"flow\.pt: UnpicklingError"):
        SpeechDecoder(tmp_path)
    assert "run by" not in capsys.readouterr().out
    (tmp_path / "flow.pt").write_bytes(b"")
    with pytest.raises(UserError, match=r"flow\.pt: EOFError"):
        SpeechDecoder(tmp_path)


def test_weight_norm_of_both_spellings_is_folded_as_torch_does():
    conv = torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv1d(3, 4, 5))
    new = dict(conv.state_dict())
    old = {
        "bias": new["bias"],
        "weight_g": new["parametrizations.weight.original0"] * 2,
        "weight_v": new["parametrizations.weight.original1"],
    }
    close(folded(new)["weight"], conv.weight.detach(), 1e-6)
    close(folded(old)["weight"], 2 * conv.weight.detach(), 1e-6)
    assert folded(old).keys() == {"bias", "weight"}


def test_tokenizer_and_decoder_must_fit(tmp_path):
    shutil.copytree(DECODER, tmp_path, dirs_exist_ok=True)
    text = (DECODER / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(text.replace("frame_rate: 12.5", "frame_rate: 25"))
    with pytest.raises(UserError, match=r"64 codes at 12\.5/s, the decoder 64 at 25/s"):
        Glm4VoiceCodec(tokenizer=TOKENIZER, decoder=tmp_path)
