"""Properties of every head and every batch: bounds, sums, linearity, order.

Each takes any fp32 problem, so that tests can draw problems at random; ``never_positive``,
``entropy_bounds`` and ``row_order`` take any dtype.
"""

import math

import torch
from torch import Tensor

from ..providers import Calls, Unsupported
from .case import case, want
from .problem import Problem, coefficients, problem, results

PAPER_VOCAB = 168072
ROUNDING = 1e-5
"""Difference, relative to the largest element, that the order of a float32 sum may make."""


def _equal_within(name: str, seen: Tensor, expected: Tensor, rounding: float = ROUNDING) -> None:
    if expected.numel() == 0:
        return
    allowed = rounding * max(expected.abs().max().item(), 1e-30)
    error = (seen.double() - expected.double()).abs().max().item()
    want(error <= allowed, f"{name}: off by {error:.1e}, want at most {allowed:.1e}")


def never_positive(calls: Calls, p: Problem) -> None:
    """log p <= 0, exactly."""
    with torch.no_grad():
        logp = calls.logp(p.hidden, p.weight, p.targets)
    top = logp.max().item() if logp.numel() else 0.0
    want(top <= 0, f"a log-probability of {top:+.1e}, want at most 0")


def entropy_bounds(calls: Calls, p: Problem) -> None:
    """0 <= entropy, exactly, and entropy <= log V up to the rounding of log V."""
    if calls.logp_entropy is None:
        raise Unsupported("no entropy")
    with torch.no_grad():
        entropy = calls.logp_entropy(p.hidden, p.weight, p.targets)[1].float()
    if entropy.numel() == 0:
        return
    low, high, most = entropy.min().item(), entropy.max().item(), math.log(len(p.weight))
    want(low >= 0, f"an entropy of {low:.1e}, want at least 0")
    want(
        high <= most + 1e-6 * max(most, 1.0),
        f"an entropy of {high:.6f}, want at most log V = {most:.6f}",
    )


def sums_to_zero(calls: Calls, p: Problem) -> None:
    """Σ_v dlogits = 0 for each row, so the rows of dW sum to 0."""
    grad = results(calls, p, g=torch.ones(len(p.targets))).grad_weight.double()
    drift, terms = grad.sum(0).abs().max().item(), grad.abs().sum(0).max().item()
    want(
        drift <= ROUNDING * terms + 1e-12,
        f"Σ_v dW_v is {drift:.1e} where its terms add up to {terms:.1e}, want rounding only",
    )


def linear(calls: Calls, p: Problem) -> None:
    """The gradients for 3a - 2b are 3 times those for a minus 2 times those for b."""
    a, b = (coefficients(len(p.targets), seed=seed) for seed in (1, 2))
    first, second, both = (results(calls, p, g=g) for g in (a, b, 3 * a - 2 * b))
    for name in ("grad_hidden", "grad_weight"):
        parts = [getattr(r, name) for r in (first, second)]
        largest = max(part.abs().max().item() for part in parts) if parts[0].numel() else 0.0
        error = (3 * parts[0] - 2 * parts[1] - getattr(both, name)).abs()
        off = error.max().item() if error.numel() else 0.0
        want(off <= 5 * ROUNDING * largest + 1e-12, f"{name}: off by {off:.1e} of {largest:.1e}")


def row_order(calls: Calls, p: Problem, rounding: float = ROUNDING) -> None:
    """Permuted rows have permuted values and dX, and the same dW."""
    n = len(p.targets)
    g = coefficients(n)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(5))
    seen, usual = results(calls, p.rows(order), g=g[order]), results(calls, p, g=g)
    _equal_within("logp", seen.logp, usual.logp[order], rounding)
    _equal_within("grad_hidden", seen.grad_hidden, usual.grad_hidden[order], rounding)
    _equal_within("grad_weight", seen.grad_weight, usual.grad_weight, rounding)


def adds_up(calls: Calls, p: Problem, first: int) -> None:
    """The gradients of two micro-batches, split at row ``first``, add up to that of the batch."""
    g = coefficients(len(p.targets))
    whole = results(calls, p, g=g).grad_weight
    parts = [
        results(calls, p.rows(part), g=g[part]).grad_weight
        for part in (slice(first), slice(first, None))
    ]
    _equal_within("grad_weight", parts[0] + parts[1], whole)


@case("never-positive", "No log-probability above 0 where the target is certain, V = 168072",
      items=(1,), source="verl#2656")  # fmt: skip
def never_positive_for_certain_targets(calls: Calls) -> None:
    p = problem(48, 16, PAPER_VOCAB)
    p.hidden.mul_(torch.logspace(0, 3, 48).unsqueeze(1))
    never_positive(calls, p._replace(targets=(p.hidden @ p.weight.T).argmax(-1)))


@case("entropy-bounds", "0 <= entropy <= log V for certain and for uniform rows", items=(12, 17))
def entropy_bounds_for_certain_and_uniform_rows(calls: Calls) -> None:
    p = problem(48, 16, PAPER_VOCAB, std=30.0)
    p.hidden[::2] = 0.0
    entropy_bounds(calls, p)


@case("probabilities-sum-to-one", "Σ_v dlogits = 0: the rows of the head's gradient sum to 0",
      items=(18,))  # fmt: skip
def probabilities_sum_to_one(calls: Calls) -> None:
    sums_to_zero(calls, problem(200, 64, 9001))


@case("linear-in-coefficients", "dX and dW are linear in the coefficients", items=(6, 18))
def gradients_are_linear_in_the_coefficients(calls: Calls) -> None:
    linear(calls, problem(100, 32, 3001))


@case("row-order", "Permuted rows: permuted log-probs and dX, the same dW", items=(18,))
def permuted_rows(calls: Calls) -> None:
    row_order(calls, problem(300, 32, 3001))


@case("micro-batches", "Two micro-batches add up to the gradient of the batch", items=(16,),
      source="trl#6024, ms-swift#10116")  # fmt: skip
def micro_batches_add_up(calls: Calls) -> None:
    adds_up(calls, problem(700, 32, 3001), 437)
