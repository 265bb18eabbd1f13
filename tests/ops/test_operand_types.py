"""Narrow types on the CPU: how they are rounded, and what a backward pass may read of them."""

import pytest
import torch

from tests.ops.problems import CPU, UNBIASED, problem, rounding_bias
from tests.tolerances import FLOOR, relative_error
from wavalign_fast.ops import backend_status, linear_logprob

pytestmark = pytest.mark.skipif(
    backend_status()["cpu"] is not None, reason=f"no kernels: {backend_status()['cpu']}"
)
OPS = torch.ops.wavalign_fast
HEADER = 64
"""Bytes before the probabilities in a store; the first is the size of their type."""


@pytest.mark.parametrize("hidden_size", [64, 131])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_are_rounded_to_nearest(dtype, hidden_size):
    biases = rounding_bias(dtype, hidden_size)
    assert all(abs(bias) < UNBIASED for bias in biases.values()), biases


@pytest.mark.parametrize("with_prob_buffer", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_probabilities_of_another_type_are_not_read(dtype, with_prob_buffer):
    """What another type wrote is noise; the backward pass makes its own."""
    p = problem(40, 64, 700, dtype, ignored=False)
    operands = (p.hidden, p.weight, p.targets, None)
    logp, entropy, _, *kept = OPS.linear_logprob(*operands, 1.0, -100, 2**20, 0.0, with_prob_buffer)

    def gradients():
        given = (torch.linspace(-1, 2, 40), None, None, *operands, 1.0, -100, logp, entropy)
        return OPS.linear_logprob_backward(*given, *kept, True, True, False)

    wanted = gradients()
    _, store, _, prob_buffer = kept
    assert prob_buffer.numel() > 0 or not with_prob_buffer
    size = int(store[0])
    assert size in (2, 4)
    store[0] = 6 - size
    store[HEADER:] = 255
    prob_buffer.fill_(torch.nan)
    for found, one in zip(gradients(), wanted, strict=True):
        assert torch.equal(found, one)


@pytest.mark.parametrize("forward", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_another_library_may_serve_the_backward_pass(dtype, forward):
    """Where a processor multiplies bfloat16, oneDNN decides which type the operands have."""
    p = problem(40, 64, 700, dtype, ignored=False)

    def gradients(*, forward: bool, backward: bool) -> tuple[torch.Tensor, ...]:
        leaves = [p.hidden.clone().requires_grad_(), p.weight.clone().requires_grad_()]
        with torch.backends.mkldnn.flags(enabled=forward):
            out = linear_logprob(*leaves, p.targets, options=CPU).logp
        with torch.backends.mkldnn.flags(enabled=backward):
            return torch.autograd.grad((out * torch.linspace(-1, 2, 40)).sum(), leaves)

    wanted = gradients(forward=True, backward=True)
    for found, one in zip(gradients(forward=forward, backward=not forward), wanted, strict=True):
        assert relative_error(found, one) <= 2 * FLOOR[dtype]
