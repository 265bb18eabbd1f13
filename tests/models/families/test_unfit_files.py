"""Files of a family that can be opened and are still of no use: quantized, or without text."""

import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from wavalign_fast.errors import UserError
from wavalign_fast.models import load_checkpoint
from wavalign_fast.models.families.checkpoint import open_family
from wavalign_fast.models.families.encoders import stored_tensors
from wavalign_fast.models.families.tiny import make_tiny_checkpoint


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantized_weights_are_refused(tmp_path, dtype):
    source = tmp_path / "tiny"
    make_tiny_checkpoint("vita_audio_plus", source)
    tensors = load_file(source / "model.safetensors")
    for prefix in ("model.audio_model.model.", "model.layers.0.mlp."):
        own = {name: tensors[name].to(dtype) for name in tensors if name.startswith(prefix)}
        save_file(tensors | own, source / "model.safetensors")
        wanted = rf"{re.escape(prefix)}\S* is {str(dtype)[6:]}, wanted bfloat16, .*quantized"
        with pytest.raises(UserError, match=wanted):
            stored_tensors(source, [prefix])
    with pytest.raises(UserError, match=wanted):
        load_checkpoint(source)


@pytest.mark.parametrize(
    ("kind", "file", "content"),
    [("step_audio_2", "tokenizer.json", None), ("kimi_audio", "tiktoken.model", b"")],
)
def test_a_tokenizer_without_its_vocabulary_is_refused(tmp_path, kind, file, content):
    source = tmp_path / "tiny"
    make_tiny_checkpoint(kind, source)
    open_family(source)
    (source / file).unlink()
    if content is not None:
        (source / file).write_bytes(content)
    with pytest.raises(UserError, match=r"has no id for 'a', .* missing or empty"):
        open_family(source)
