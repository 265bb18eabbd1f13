"""The built-in sampler behind the interface of an engine."""

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from wavalign_fast.rollout import Twin, sample_with_logps, uniforms
from wavalign_fast.rollout.engine import BuiltinEngine, RolloutRequest

PROMPTS = [[2, 3, 4], [5, 6]]
EOS, PAD = 1, 0


@pytest.fixture(scope="module")
def model() -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    return Qwen2ForCausalLM(config).eval()


def request(**changes) -> RolloutRequest:
    settings = {
        "prompt_ids": PROMPTS,
        "places": [1, 3],
        "step": 7,
        "seed": 5,
        "group_size": 8,
        "max_new_tokens": 6,
        "ends": frozenset([EOS]),
        "temperature": 0.8,
    }
    return RolloutRequest(**settings | changes)


def test_completions_are_those_of_the_sampler(model) -> None:
    found = BuiltinEngine(Twin(model), PAD).sample(request())
    places = torch.tensor([place for place in (1, 3) for _ in range(8)])
    draws = uniforms(5, 7, places, torch.arange(8).repeat(2), torch.arange(6))
    wanted = sample_with_logps(
        model,
        PROMPTS,
        group_size=8,
        max_new_tokens=6,
        eos_id=EOS,
        pad_id=PAD,
        temperature=0.8,
        draws=draws,
    )
    assert [done.ids for done in found] == wanted.ids
    torch.testing.assert_close([done.logps for done in found], wanted.logps, rtol=0, atol=0)
    assert {done.ended for done in found} == {True, False}
    for done in found:
        assert done.ended == (done.ids[-1] == EOS)
        assert done.versions.tolist() == [7] * len(done.ids)


def test_without_an_end_every_completion_is_cut(model) -> None:
    found = BuiltinEngine(Twin(model), PAD).sample(request(ends=frozenset()))
    assert [len(done.ids) for done in found] == [6] * 16
    assert not any(done.ended for done in found)


def test_weights_are_those_of_the_last_call(model) -> None:
    """A copy in another dtype has the policy's weights of when they were set."""
    engine = BuiltinEngine(Twin(model, torch.bfloat16), PAD)
    engine.set_weights(1)
    before = engine.sample(request())
    saved = model.lm_head.weight.detach().clone()
    with torch.no_grad():
        model.lm_head.weight.mul_(-3)
    try:
        assert [done.ids for done in engine.sample(request())] == [done.ids for done in before]
        engine.set_weights(2)
        assert [done.ids for done in engine.sample(request())] != [done.ids for done in before]
    finally:
        with torch.no_grad():
            model.lm_head.weight.copy_(saved)
    engine.release()
    assert next(engine.twin.model.parameters()).is_meta
