"""Small checkpoints of each family are whole: they load, speak, and go back to the same bytes."""

import pytest
import torch

from wavalign_fast.errors import UserError
from wavalign_fast.models import load_checkpoint
from wavalign_fast.models.families.checkpoint import load_family, read_aside
from wavalign_fast.models.families.export import export_family
from wavalign_fast.models.families.interface import Audio
from wavalign_fast.models.families.tiny import make_tiny_checkpoint
from wavalign_fast.models.families.tiny_parts import PARTS
from wavalign_fast.models.prompt_audio.vita_audio_plus import VitaAudioPlusEncoder

MESSAGES = [
    {"role": "system", "content": "You are a voice assistant."},
    {"role": "user", "content": "Listen:\n<|audio|>"},
]


@pytest.mark.parametrize("kind", PARTS)
def test_a_small_checkpoint_is_whole(tmp_path, kind):
    make_tiny_checkpoint(kind, tmp_path / "tiny", codebook_size=48, weight_files=2)
    loaded = load_family(tmp_path / "tiny", torch.float32)
    family, files = loaded.family, loaded.files
    assert files.layout.codebook_size == 48
    prompt = family.prompt(files, MESSAGES, [Audio(codes=range(10), positions=(7,))])
    target = family.target(files, "Nine it is, my friend.", [5, 7, 47, 3, 1])
    answer = family.split(files, target.ids)
    assert files.tokenizer.decode(answer.text).strip() == "Nine it is, my friend."
    assert (answer.codes, answer.ended) == ([5, 7, 47, 3, 1], True)
    logits = loaded.model(torch.tensor([prompt.ids + target.ids])).logits
    assert logits.isfinite().all() and logits.std() > 0.1
    native = dict(load_checkpoint(tmp_path / "tiny").named_parameters())
    export_family(tmp_path / "tiny", tmp_path / "out", native)
    for path in (tmp_path / "tiny").iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name


def test_plus_hears(tmp_path):
    make_tiny_checkpoint("vita_audio_plus", tmp_path / "tiny")
    loaded = load_family(tmp_path / "tiny", torch.float32)
    tensors = read_aside(tmp_path / "tiny", loaded.table)
    encoder = VitaAudioPlusEncoder.of(tensors, loaded.files.config, tmp_path / "tiny")
    wave = 0.1 * torch.randn(8000, generator=torch.Generator().manual_seed(0))
    (heard,) = encoder.pieces(wave)
    assert heard.shape == (4 + 8, loaded.model.config.hidden_size)
    assert heard.isfinite().all() and heard.std() > 0.01


@pytest.mark.parametrize("kind", PARTS)
def test_the_seed_decides_the_weights(tmp_path, kind):
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        make_tiny_checkpoint(kind, tmp_path / name, seed=seed)
    contents = [
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "same", "other")
    ]
    assert contents[0] == contents[1] != contents[2]


def test_what_cannot_be_made_is_refused(tmp_path):
    with pytest.raises(
        UserError, match="tiny checkpoint 'vita': not known, wanted one of vita_audio"
    ):
        make_tiny_checkpoint("vita", tmp_path / "new")
    with pytest.raises(UserError, match="exists, wanted a new directory"):
        make_tiny_checkpoint("vita_audio", tmp_path)
