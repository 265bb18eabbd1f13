"""The golden cases of families with an encoder of prompt audio."""

import torch
from safetensors.torch import load_file

from wavalign_fast.models.families.checkpoint import load_family
from wavalign_fast.models.families.encoders import load_audio_encoder

from .golden import GOLDEN


def loaded(family, **options):
    """Returns the family's golden case, float32, and its expected tensors."""
    directory = GOLDEN / family
    case = load_family(directory, torch.float32, **options)
    return case, load_file(directory / "golden.safetensors")


def encoded(case, samples):
    """Encodes 16-bit samples, and returns the vectors of each piece."""
    return load_audio_encoder(case.family, case.files).encode(samples.float() / 32768)


def with_vectors(model, ids, spans, vectors):
    """Returns the embeddings of ids [T], with ``vectors[k]`` of audio k at the spans: [1, T, H]."""
    rows = model.get_input_embeddings()(torch.tensor(ids)).detach()
    for span in spans:
        own = vectors[span.audio][span.offset : span.offset + span.count]
        rows[span.first : span.first + span.count] = own
    return rows[None]


def hidden_and_logits(model, embedded):
    with torch.no_grad():
        hidden = model.base_model(inputs_embeds=embedded).last_hidden_state
        return hidden, model.lm_head(hidden)


def close(found, wanted, atol=1e-5):
    torch.testing.assert_close(found, wanted, rtol=0, atol=atol)
