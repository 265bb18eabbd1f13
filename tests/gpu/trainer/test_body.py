"""What a GPU alone can compute of a model's body: liger-kernel's kernels, flash-attn, runs by both.

On the CPU tests/models/test_liger.py tests the calls, and tests/gpu/conformance/interpreter the
kernels.
"""

import pytest
import torch

from tests.gpu.trainer.places import toy_config, trained, weights_of
from tests.models.bodies import CONFIGS, body_of, hidden_and_gradients, largest_error
from tests.models.tiny import gradients, rows_of
from wavalign_fast.models import PackedRows, hidden_states, set_attention, use_liger
from wavalign_fast.train.ranks import Ranks

pytestmark = pytest.mark.gpu
DEVICE = torch.device("cuda:0")
WIDER = dict(hidden_size=256, intermediate_size=640, head_dim=64, initializer_range=0.05)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
@pytest.mark.parametrize("family", CONFIGS)
def test_liger_has_the_hidden_states_and_gradients_of_plain_torch(family, dtype, bound):
    """Both are compared with float32 torch: bfloat16 may add its own rounding, no more."""
    pytest.importorskip("liger_kernel", reason="liger-kernel is not installed")
    wanted = hidden_and_gradients(body_of(family, **WIDER).to(DEVICE), 37, 20)
    swapped = body_of(family, dtype, **WIDER).to(DEVICE)
    use_liger(swapped)
    found = hidden_and_gradients(swapped, 37, 20)
    assert largest_error(found, wanted) < bound


def test_a_run_by_liger_is_that_of_plain_torch(tmp_path):
    """Rollouts, whose decode is captured in a CUDA graph, reference, loss and updates."""
    pytest.importorskip("liger_kernel", reason="liger-kernel is not installed")
    keys = ("train.eval_items=0", "loss.text_kl=0.2", "train.steps=2")
    ranks = Ranks(device=DEVICE)
    wanted = weights_of(trained(toy_config(*keys), tmp_path / "torch", ranks))
    config = toy_config(*keys, "model.kernels=liger")
    found = weights_of(trained(config, tmp_path / "liger", ranks))
    for name, weight in wanted.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-4)


def packed(attention: str) -> dict[str, torch.Tensor]:
    """Hidden states and gradients of rows of three lengths in one, without padding."""
    model = body_of("qwen2", torch.bfloat16, **WIDER).to(DEVICE)
    set_attention(model, attention)
    rows = rows_of(37, 5, 20)
    if attention == "sdpa":
        hidden = torch.cat([hidden_states(model, [row[None].to(DEVICE)]) for row in rows])
    else:
        hidden = hidden_states(model, [PackedRows.of(rows).to(DEVICE)])
    weights = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1))
    (hidden.float() * weights.to(DEVICE)).sum().backward()
    return {"hidden": hidden.detach().float(), **gradients(model)}


def test_flash_attention_has_the_hidden_states_and_gradients_of_sdpa():
    pytest.importorskip("flash_attn", reason="flash-attn is not installed")
    assert largest_error(packed("flash_attention_2"), packed("sdpa")) < 0.1
