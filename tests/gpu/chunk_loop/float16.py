"""Checks of float16 operands, with any kernels behind the loop.

The gradient of one logit, in a mean over many rows, is far below float16's smallest number. The
gradients of the operands, which float16 can hold, are sums of them.
"""

import random

import torch

import wavalign_fast as wf
from tests.gpu.chunk_loop.checks import REFERENCE, SMALL
from tests.losses.formula import LAYOUT, random_batch

HALF = torch.float16
CLOSE = 2e-3
"""Four roundings to float16, relative to the largest number of a row."""


def assert_close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    """Each row, to within a few float16 roundings of its largest number."""
    error = (found.double() - wanted.double()).abs().amax(-1)
    largest = wanted.double().abs().amax(-1)
    # Below its normal numbers float16 rounds to a multiple of 2^-24.
    allowed = CLOSE * largest + 2.0**-24
    assert bool((error <= allowed).all()), f"off by {float((error / allowed).max()):.1f} x allowed"


def a_mean_of_many_rows_keeps_its_gradients(
    device: str, *, rows: int = 600, vocab: int = 3000, budget: int | None = None
) -> None:
    """g p is 7e-10 except in the targets' columns; its sum over the rows is 4e-7."""
    g = torch.Generator().manual_seed(1)
    hidden = (8 + torch.randn(rows, 16, generator=g)).to(device, HALF)
    weight = (torch.randn(vocab, 16, generator=g) / 100).to(device, HALF)
    bias = torch.zeros(vocab, device=device, dtype=HALF)
    targets = torch.randint(0, 40, (rows,), generator=g).to(device)
    coefficients = torch.rand(2, rows, generator=g).to(device)
    grads = []
    for dtype, options in (
        (torch.float64, REFERENCE),
        (HALF, wf.LossOptions(memory_budget=budget)),
    ):
        leaves = [t.to(dtype).requires_grad_() for t in (hidden, weight, bias)]
        out = wf.linear_logprob(
            *leaves[:2], targets, bias=leaves[2], with_entropy=True, options=options
        )
        by_logp, by_entropy = coefficients.to(out.logp.dtype)
        (100 * (by_logp * out.logp + by_entropy * out.entropy).mean()).backward()
        grads.append([leaf.grad for leaf in leaves])
    for wanted, found in zip(*grads, strict=True):
        assert_close(found, wanted)


def rows_of_every_size_keep_their_gradients(
    device: str, *, rows: int = 600, budget: int | None = SMALL
) -> None:
    """Rows that differ by a factor of 2^60, the smallest in the first chunk, and rows of zeros."""
    vocab = 61
    g = torch.Generator().manual_seed(2)
    hidden, weight = torch.randn(rows, 8, generator=g), torch.randn(vocab, 8, generator=g)
    hidden, weight = hidden.to(device, HALF), weight.to(device, HALF)
    targets = torch.randint(0, vocab, (rows,), generator=g).to(device)
    size = torch.pow(2.0, -torch.linspace(60, 0, rows)) * (torch.rand(rows, generator=g) < 0.9)
    size = size.to(device)
    truth = [t.double().requires_grad_() for t in (hidden, weight)]
    out = wf.linear_logprob(*truth, targets, options=REFERENCE)
    (size.double() * out.logp).sum().backward()
    leaves = [t.clone().requires_grad_() for t in (hidden, weight)]
    out = wf.linear_logprob(*leaves, targets, options=wf.LossOptions(memory_budget=budget))
    (size * out.logp).sum().backward()
    for leaf, exact in zip(leaves, truth, strict=True):
        assert_close(leaf.grad, exact.grad)


def a_scaled_hybrid_step_keeps_its_gradients(device: str, factor: float = 2.0**16) -> None:
    """A gradient scaler's factor arrives after the step has computed its gradients."""
    config = {"policy_scope": "all", "text_kl": 0.1, "speech_kl": 0.2, "gate": 0.5}
    batch, hidden, weight = random_batch(random.Random(5), 2, 3, 2, reference=True, old=True)
    hidden, weight = hidden.to(HALF), weight.to(HALF)
    # One micro-batch of very many.
    parts = wf.Normalisers(1e5, 1e5, 1e5)
    grads = []
    for dtype, options in ((torch.float64, REFERENCE), (HALF, None)):
        objective = wf.HybridObjective(LAYOUT, options=options, **config)
        leaves = [t.to(device, dtype).requires_grad_() for t in (hidden, weight)]
        moved = batch.to(torch.device(device))
        (objective(*leaves, moved, normalisers=parts).loss * factor).backward()
        grads.append([leaf.grad for leaf in leaves])
    for wanted, found in zip(*grads, strict=True):
        assert found.dtype == HALF
        assert_close(found, wanted)
        assert bool(found.any())
