"""The weight gradient that holds probabilities until the backward pass: bits and lifetime."""

import pytest
import torch

from tests.ops.problems import CPU, problem
from wavalign_fast.ops import LossOptions, backend_status, linear_logprob

pytestmark = pytest.mark.skipif(
    backend_status()["cpu"] is not None, reason=f"no kernels: {backend_status()['cpu']}"
)
NOTHING_KEPT = LossOptions(backend="cpu", memory_budget=0)


def loss_of(p, leaves, options=CPU):
    out = linear_logprob(*leaves, p.targets, with_entropy=True, options=options)
    g = torch.Generator().manual_seed(1)
    return (out.logp * torch.randn(p.targets.shape, generator=g)).sum() + 0.1 * out.entropy.sum()


def leaves_of(p):
    return [t.clone().requires_grad_() for t in (p.hidden, p.weight)]


# With 600 rows, the buffer holds all lanes for H = 640, two of three panels for 576, none for 64.
@pytest.mark.parametrize("hidden_size", [640, 576, 64])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
def test_gradients_have_the_same_bits_as_from_recomputed_probabilities(hidden_size, dtype):
    p = problem(600, hidden_size, 700, dtype, ignored=False)
    grads = [
        torch.autograd.grad(loss_of(p, leaves := leaves_of(p), options), leaves)
        for options in (CPU, NOTHING_KEPT)
    ]
    for kept, again in zip(*grads, strict=True):
        assert torch.equal(kept, again)


def test_a_second_backward_pass_has_the_same_bits():
    p = problem(40, 64, 700, torch.bfloat16)
    leaves = leaves_of(p)
    loss = loss_of(p, leaves)
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    kept = [g.clone() for g in first]
    second = torch.autograd.grad(loss, leaves)
    for g, again, before in zip(first, second, kept, strict=True):
        assert torch.equal(g, before) and torch.equal(again, before)


def test_one_operand_at_a_time():
    p = problem(40, 64, 700, torch.bfloat16)
    leaves = leaves_of(p)
    both = torch.autograd.grad(loss_of(p, leaves), leaves)
    loss = loss_of(p, leaves)
    for order in ((0, 1), (1, 0)):
        for i in order:
            (alone,) = torch.autograd.grad(loss, leaves[i], retain_graph=True)
            assert torch.equal(alone, both[i])
        loss = loss_of(p, leaves)


def test_calls_before_one_backward_pass_share_no_prob_buffer():
    """Of several calls before one backward pass, only the first has a probability buffer."""
    problems = [problem(40, 64, 700, torch.bfloat16, seed=seed) for seed in range(3)]
    alone = [torch.autograd.grad(loss_of(p, leaves := leaves_of(p)), leaves) for p in problems]
    every = [leaves_of(p) for p in problems]
    losses = [loss_of(p, leaves) for p, leaves in zip(problems, every, strict=True)]
    sum(losses).backward()
    for leaves, wanted in zip(every, alone, strict=True):
        for leaf, gradient in zip(leaves, wanted, strict=True):
            assert torch.equal(leaf.grad, gradient)


def has_prob_buffer(p) -> bool:
    *_, prob_buffer = torch.ops.wavalign_fast.linear_logprob(
        p.hidden, p.weight, p.targets, None, 1.0, -100, 2**20, 0.0, True
    )
    return prob_buffer.numel() > 0


def test_a_prob_buffer_is_released_without_a_backward_pass():
    p = problem(40, 64, 700, torch.bfloat16)
    assert has_prob_buffer(p)
    loss = loss_of(p, leaves_of(p))
    assert not has_prob_buffer(p)
    del loss
    assert has_prob_buffer(p)


def test_the_prob_buffer_becomes_the_gradient_without_a_copy():
    p = problem(40, 64, 700, torch.bfloat16)
    leaves = leaves_of(p)
    loss = loss_of(p, leaves)
    node = loss.grad_fn
    while not hasattr(node, "prob_buffer"):
        node = node.next_functions[0][0]
    place = node.prob_buffer.data_ptr()
    del node
    loss.backward()
    assert leaves[1].grad.data_ptr() == place
