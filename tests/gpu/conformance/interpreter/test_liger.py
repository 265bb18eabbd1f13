"""liger-kernel in the body of a model, interpreted, compared with transformers' plain torch."""

from typing import Any
from unittest import mock

import numpy as np
import pytest

pytest.importorskip("triton")
pytest.importorskip("liger_kernel", reason="liger-kernel is not installed")

import triton.language as tl
from liger_kernel.ops import rms_norm
from triton.runtime import interpreter

from tests.models.bodies import body_of, hidden_and_gradients, largest_error
from wavalign_fast.models import add_lora, recompute_activations, use_liger


def _converted(arg: Any, original=interpreter._implicit_cvt) -> Any:
    """A number that a compiled kernel takes as float32, and the interpreter as Python's float."""
    if not isinstance(arg, float):
        return original(arg)
    handle = interpreter.TensorHandle(np.array([arg], dtype=np.float32), tl.float32)
    return tl.tensor(handle, tl.float32)


def interpreted():
    """Repairs two things that no kernel of ours meets; a function of libdevice returns nothing."""
    return (
        mock.patch.object(interpreter, "_implicit_cvt", _converted),
        mock.patch.object(rms_norm, "rsqrt", lambda x: tl.rsqrt(x)),
    )


def prepared(family: str, variant: str, *, liger: bool):
    model = body_of(family)
    if liger:
        use_liger(model)
    if variant == "checkpointed":
        recompute_activations(model)
    elif variant == "adapters":
        add_lora(model, rank=2, alpha=4, targets=[], head=False, seed=0)
        for name, weight in model.named_parameters():
            if "lora_B" in name:  # 0 at first, and then A has no gradient
                weight.data.fill_(0.1)
    return model


@pytest.mark.parametrize(
    ("family", "variant"),
    [("llama", "plain"), ("mistral", "adapters"), ("qwen2", "checkpointed"), ("qwen3", "plain")],
)
def test_hidden_states_and_gradients_are_those_of_plain_torch(family, variant):
    """float32: two rows of different lengths, each with several heads and odd sizes."""
    if variant == "adapters":
        pytest.importorskip("peft")
    wanted = hidden_and_gradients(prepared(family, variant, liger=False), 5, 2)
    numbers, libdevice = interpreted()
    with numbers, libdevice:
        found = hidden_and_gradients(prepared(family, variant, liger=True), 5, 2)
    assert largest_error(found, wanted) < 1e-5
