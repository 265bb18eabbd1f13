"""Small checkpoints of each family are whole: they load, speak, and go back to the same bytes."""

import pytest
import torch

from wavalign_fast.errors import UserError
from wavalign_fast.models import load_checkpoint
from wavalign_fast.models.families.checkpoint import load_family, open_family
from wavalign_fast.models.families.encoders import load_audio_encoder
from wavalign_fast.models.families.export import export_family
from wavalign_fast.models.families.interface import Audio
from wavalign_fast.models.families.tiny import make_tiny_checkpoint
from wavalign_fast.models.families.tiny_parts import PARTS

MESSAGES = [
    {"role": "system", "content": "You are a voice assistant."},
    {"role": "user", "content": "Listen:\n<|audio|>"},
]


@torch.no_grad()
def scores(model, prompt, target):
    """Logits of each stream."""
    ids = torch.tensor([prompt.ids + target.ids])
    if target.second_ids is None:
        return [model(ids).logits]
    states = model(ids, torch.tensor([prompt.second_ids + target.second_ids]))
    return [model.lm_head(states[0]), model.mimo_output(states[1])]


@pytest.mark.parametrize("kind", PARTS)
def test_a_small_checkpoint_is_whole(tmp_path, kind):
    make_tiny_checkpoint(kind, tmp_path / "tiny", codebook_size=48, weight_files=2)
    loaded = load_family(tmp_path / "tiny", torch.float32)
    family, files = loaded.family, loaded.files
    assert files.layout.codebook_size == 48
    prompt = family.prompt(files, MESSAGES, [Audio(codes=range(5), positions=(7,))])
    codes = [5, 7, 47, 3, 1, 0, 9, 2]
    target = family.target(files, "Nine it is, my friend.", codes)
    answer = family.split(files, target.ids, target.second_ids or ())
    assert files.tokenizer.decode(answer.text).strip() == "Nine it is, my friend."
    assert (answer.codes, answer.ended) == (codes, True)
    for logits in scores(loaded.model, prompt, target):
        assert logits.isfinite().all() and logits.std() > 0.1
    native = dict(load_checkpoint(tmp_path / "tiny").named_parameters())
    export_family(tmp_path / "tiny", tmp_path / "out", native)
    for path in (tmp_path / "tiny").rglob("*"):
        own = tmp_path / "out" / path.relative_to(tmp_path / "tiny")
        assert path.is_dir() or own.read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize(
    ("kind", "count"),
    [("vita_audio_plus", 12), ("step_audio_2", 6), ("covo_audio", 4), ("kimi_audio", 7)],
)
def test_a_family_with_an_encoder_hears(tmp_path, kind, count):
    """Half a second of sound: 60 ms windows and four more, 12.5, 6.25 or 12.5 a second."""
    make_tiny_checkpoint(kind, tmp_path / "tiny")
    family, files = open_family(tmp_path / "tiny")
    encoder = load_audio_encoder(family, files)
    wave = 0.1 * torch.randn(8000, generator=torch.Generator().manual_seed(0))
    (heard,) = encoder.pieces(wave)
    assert heard.shape == (count, 64)
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
