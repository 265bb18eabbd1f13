"""The page about rollouts on a GPU is what its script writes, and its launches were counted."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Qwen2Config, Qwen2ForCausalLM

from benchmarks import decode_model
from tests.gpu.chunk_loop.pretended import LAUNCH_NOTHING
from wavalign_fast.rollout import static_decode
from wavalign_fast.rollout.prefill import prefill
from wavalign_fast.rollout.settings import Settings


def test_the_page_is_up_to_date():
    """If this fails, run: python -m benchmarks.decode_model --save"""
    text = decode_model.DECODE_PAGE.read_text(encoding="utf-8")
    assert text == decode_model.page()
    assert "No GPU has run this" in text


class Launches(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket.__name__ not in LAUNCH_NOTHING
        return func(*args, **(kwargs or {}))


def launches(layers: int) -> int:
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 16}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    model = Qwen2ForCausalLM(Qwen2Config(**sizes, **heads, num_hidden_layers=layers)).eval()
    with torch.inference_mode():
        prefix = prefill(model, [[1, 2], [3]], 0)
        decode = static_decode.static_decode(model, prefix, Settings(1, 4, frozenset([1]), 1.0))
        decode._begin(prefix, torch.rand(2, 4, dtype=torch.float64))
        decode._choose(prefix.logits)
        with Launches() as seen:
            decode._advance(model)
    return seen.count


def test_launches_are_those_of_a_step(monkeypatch):
    monkeypatch.setattr(static_decode, "DEVICES", ("cpu",))
    layer = launches(3) - launches(2)
    # Other releases of transformers have a few more or fewer.
    assert layer == pytest.approx(decode_model.LAYER_LAUNCHES, rel=0.15)
    assert launches(2) - 2 * layer < decode_model.OTHER_LAUNCHES
