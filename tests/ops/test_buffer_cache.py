"""The cache of large buffers: calls reuse them, and no two tensors share one."""

import pytest
import torch

import wavalign_fast as wf
from wavalign_fast.ops import backend_status

pytestmark = pytest.mark.skipif(
    backend_status()["cpu"] is not None, reason=f"no kernels: {backend_status()['cpu']}"
)


def gradient(vocab: int = 8192, seed: int = 0) -> torch.Tensor:
    """dW of a head that is large enough for the cache: at least 8 MiB."""
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(32, 512, generator=g).bfloat16()
    weight = torch.randn(vocab, 512, generator=g).bfloat16().requires_grad_()
    targets = torch.randint(0, vocab, (32,), generator=g)
    wf.linear_logprob(hidden, weight, targets).logp.sum().backward()
    assert weight.grad is not None
    return weight.grad


def test_a_released_gradient_is_reused() -> None:
    wf.empty_cache()
    first = gradient()
    place, wanted = first.data_ptr(), first.clone()
    del first
    again = gradient()
    assert again.data_ptr() == place
    assert torch.equal(again, wanted)


def test_a_gradient_in_use_is_not_reused() -> None:
    held = gradient(seed=1)
    before = held.clone()
    others = [gradient(seed=seed) for seed in (2, 3)]
    assert len({g.data_ptr() for g in (held, *others)}) == 3
    assert torch.equal(held, before)


def test_a_view_keeps_the_buffer() -> None:
    rows = gradient(seed=4)[5:7]
    before = rows.clone()
    gradient(seed=5)
    assert torch.equal(rows, before)


def test_the_cache_is_emptied_on_request_and_by_other_sizes() -> None:
    wf.empty_cache()
    first = gradient()
    assert wf.empty_cache() == 0
    size = first.nbytes
    del first
    assert wf.empty_cache() >= size
    assert wf.empty_cache() == 0
    small = gradient()
    del small
    large = gradient(vocab=8 * 8192)  # the cached buffer does not fit and is released
    assert wf.empty_cache() < size
    assert large.isfinite().all()
