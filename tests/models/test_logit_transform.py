"""What a model does to its logits is found, and the fused log-probs are those of its logits."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import wavalign_fast as wf
from wavalign_fast.errors import UserError
from wavalign_fast.models import logit_transform

SIZES = {
    "vocab_size": 24, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
}  # fmt: skip
MODELS = {
    "gemma2": ({"final_logit_softcapping": 0.5}, {"softcap": 0.5}),
    "gemma3_text": ({"final_logit_softcapping": 0.7}, {"softcap": 0.7}),
    "granite": ({"logits_scaling": 8.0}, {"scale": 0.125}),
    "cohere": ({"logit_scale": 0.25}, {"scale": 0.25}),
}


@pytest.mark.parametrize("kind", MODELS)
def test_the_log_probs_are_those_of_the_models_logits(kind: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    given, wanted = MODELS[kind]
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SIZES, pad_token_id=0, **given)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    nn.init.normal_(model.get_output_embeddings().weight)  # logits that a cap changes
    ids = torch.tensor([[1, 13, 2, 5], [7, 2, 20, 23]])
    with torch.no_grad():
        table = torch.log_softmax(model(input_ids=ids).logits / 0.7, -1)
        hidden = model.base_model(input_ids=ids).last_hidden_state
        head = wf.output_head(model)
        found = wf.linear_logprob(
            hidden, head.weight, ids, temperature=0.7, transform=head.transform
        ).logp
        plain = wf.linear_logprob(hidden, head.weight, ids, temperature=0.7).logp
    assert head.transform == wf.LogitTransform(bias_added="before_temperature", **wanted)
    want = table.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5)
    assert (plain - want).abs().max() > 1e-2


def test_one_of_the_user_and_what_is_no_number() -> None:
    def model(**config: object) -> SimpleNamespace:
        return SimpleNamespace(config=SimpleNamespace(model_type="mine", **config))

    assert wf.output_head(nn.Linear(3, 4)).transform.scale == 1.0
    assert logit_transform(model(logits_scaling=4)).scale == 0.25
    assert logit_transform(model(lm_head_multiplier=3)).scale == 3.0
    inkling = dict(logits_mup_width_multiplier=4.0, vocab_size=24)
    assert logit_transform(model(**inkling, unpadded_vocab_size=24)).scale == 0.25
    with pytest.raises(UserError, match="unpadded_vocab_size of the model: got 20, want 24"):
        logit_transform(model(**inkling, unpadded_vocab_size=20))
    hyperclovax = model(logits_scaling=4)
    hyperclovax.config.model_type = "hyperclovax"
    assert logit_transform(hyperclovax).scale == 4.0
    with pytest.raises(UserError, match="logit_scale of the model: got 'inv_sqrt_d_model', want"):
        logit_transform(model(logit_scale="inv_sqrt_d_model"))
    with pytest.raises(UserError, match="want at most one of them"):
        logit_transform(model(logit_scale=2.0, logits_scaling=2.0))
