"""The names that transformers changed: the right one is used, without a deprecation warning."""

from types import SimpleNamespace

import pytest
import torch
from transformers import DynamicCache, PreTrainedModel

from wavalign_fast.models import recompute_activations
from wavalign_fast.models.transformers_names import cache_argument

from .test_output_head import causal_lm, gradients, log_probs_of_logits

RENAMED = hasattr(PreTrainedModel, "activation_checkpointing_enable")


def new(ids, cache=None):
    """A forward of transformers 5.24."""


def old(ids, past_key_values=None):
    """A forward of transformers 5.23, or of a model that was written for it."""


def wrapped(*args, **kwargs):
    """A forward that passes on any argument."""


@pytest.mark.parametrize(
    ("forward", "name"),
    [
        (new, "cache"),
        (old, "past_key_values"),
        (wrapped, "cache" if RENAMED else "past_key_values"),
    ],
)
def test_a_cache_has_the_name_that_the_forward_gives_it(forward, name):
    cache = object()
    assert cache_argument(SimpleNamespace(forward=forward), cache) == {name: cache}


@pytest.mark.filterwarnings("error")
def test_a_model_of_this_release_writes_to_the_cache():
    model = causal_lm()
    cache = DynamicCache(config=model.config)
    model(torch.tensor([[1, 2, 3]]), use_cache=True, **cache_argument(model, cache))
    assert cache.get_seq_length() == 3


@pytest.mark.filterwarnings("error")
def test_recomputed_activations_give_the_same_gradients():
    model = causal_lm().train()
    want = gradients(model, log_probs_of_logits(model))
    calls = []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(None))
    recompute_activations(model)
    got = gradients(model, log_probs_of_logits(model))
    assert len(calls) == 2, "once forward, once again in the backward pass"
    torch.testing.assert_close(got, want)
