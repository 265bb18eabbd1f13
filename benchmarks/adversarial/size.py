"""Sizes at which offsets overflow, sums lose digits and memory runs out."""

import gc

import torch

from .. import timing
from ..providers import Calls, Unsupported
from .case import case, want
from .problem import PLAIN, Problem, check, compare, gradient, largest_logit, problem, results

PAPER_VOCAB = 168072


@case("rows-times-vocab", "N·V just over 2^31: rows on both sides of the overflow", items=(4,),
      source="Liger#1296", slow=True)  # fmt: skip
def logits_beyond_32_bit_offsets(calls: Calls) -> None:
    rows = 2**31 // PAPER_VOCAB + 24
    p = problem(rows, 4, PAPER_VOCAB)
    hidden, weight = p.hidden.requires_grad_(), p.weight.clone().requires_grad_()
    logp = calls.logp(hidden, weight, p.targets)
    logp.float().sum().backward()
    # The rows at both ends show an overflow of an offset. dW sums over all rows.
    sample = torch.cat([torch.arange(12), torch.arange(rows - 36, rows)])
    part = Problem(p.hidden.detach()[sample], p.weight, p.targets[sample])
    g = torch.ones(len(sample))
    truth, plain = results(PLAIN, part.double(), g=g), results(PLAIN, part, g=g)
    floor = 8 * torch.finfo(torch.float32).eps * largest_logit(part)
    compare("logp", logp.detach()[sample], truth.logp, plain.logp, value_floor=floor)
    seen = gradient("hidden", hidden)[sample]
    compare("grad_hidden", seen, truth.grad_hidden, plain.grad_hidden, value_floor=floor)
    # Each row's dlogits sum to 0 over the vocabulary, and so do the rows of dW.
    grad = gradient("weight", weight).double()
    drift = (grad.sum(0).abs() / grad.abs().sum(0)).max().item()
    want(drift <= 1e-4, f"Σ_v dW_v is {drift:.1e} of its terms, want at most 1e-4")


@case("many-rows", "N = 70 000, more than a grid dimension of 65 535", items=(4,),
      source="Liger#1294")  # fmt: skip
def more_rows_than_a_grid_dimension(calls: Calls) -> None:
    check(calls, problem(70_000, 8, 64))


@case("weight-gradient-rows", "bf16 head gradient over 32 768 rows: the sum keeps its digits",
      items=(5,), source="Liger#512, Liger#827, Liger#830, OLMo-core#370")  # fmt: skip
def bf16_head_gradient_over_many_rows(calls: Calls) -> None:
    errors = {}
    for rows in (256, 32_768):
        p = problem(rows, 32, 200, torch.bfloat16)
        # A trained model's gradient has a direction: all rows push to the same ids.
        p = p._replace(targets=p.targets % 5)
        g = torch.ones(rows)
        truth = results(PLAIN, p.double(), g=g).grad_weight
        errors[rows] = [
            ((results(side, p, g=g).grad_weight.double() - truth).norm() / truth.norm()).item()
            for side in (calls, PLAIN)
        ]
    seen, usual = errors[32_768]
    want(
        seen <= 3 * usual,
        f"relative error {seen:.1e} over 32 768 rows ({errors[256][0]:.1e} over 256), want at "
        f"most {3 * usual:.1e}, three times that of one product",
    )


@case("memory", "Forward and backward never hold the logits: N 4096, V 65 536, H 32, fp32",
      items=(20,), source="Liger#1308, Liger#1323, vllm#5907")  # fmt: skip
def memory_below_the_logits(calls: Calls) -> str:
    p = problem(4096, 32, 65_536)
    hidden, weight = p.hidden.requires_grad_(), p.weight.requires_grad_()

    def step() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(calls.logp(hidden, weight, p.targets).sum(), (hidden, weight))

    small = p.rows(slice(64))
    # Compile and load, which happens only once, before the measurement.
    calls.logp(small.hidden, small.weight, small.targets).sum().backward()
    gc.collect()
    extra = timing.peak_extra_bytes(step)
    if extra is None:
        raise Unsupported("this kernel does not let a process measure its peak memory")
    logits = len(p.targets) * len(weight) * 4
    seen = f"{extra / 2**20:.0f} MiB beyond the operands"
    want(extra < logits, f"{seen}, want less than the logits' {logits / 2**20:.0f} MiB")
    return seen
