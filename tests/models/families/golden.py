"""The golden cases: checkpoints in the families' files, and what their published code computes."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from wavalign_fast.models.families.checkpoint import load_family, open_family

GOLDEN = Path(__file__).parents[2] / "data" / "families"
CLOSE = {"rtol": 0, "atol": 1e-5}


def loaded(name):
    """The family's directory with its native model in float32, and the golden tensors."""
    return load_family(GOLDEN / name, torch.float32), load_file(
        GOLDEN / name / "golden.safetensors"
    )


def opened(name):
    """The files of a family's directory."""
    return open_family(GOLDEN / name)[1]


def read(name):
    """A JSON file of a case."""
    return json.loads((GOLDEN / name).read_text(encoding="utf-8"))


@torch.no_grad()
def outputs(model, **inputs):
    """Hidden states after the final norm, and logits."""
    hidden = model.model(**inputs).last_hidden_state
    return hidden, model.lm_head(hidden)


@torch.no_grad()
def greedy(model, prompt, count):
    """The ids [1, count] that a model says greedily after ``prompt`` [1, P]."""
    ids = prompt
    for _ in range(count):
        ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    return ids[:, prompt.shape[1] :]
