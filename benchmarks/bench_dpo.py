"""Preference loss over pairs of sequences: ours, plain torch, Liger.

    python -m benchmarks.bench_dpo [--quick] [--shape NAME] [--dtype bf16] [--save]

Times forward and backward passes to hidden states and head. No side has a reference model, because
Liger takes the reference's hidden states and the others its log-probs. Every side is checked
against float64 first. The exit code is 1 if ours fails the check; timings do not affect it.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .bench_linear_logprob import random_head
from .case import Case, provider_sides, run_cases
from .options import DTYPES, Options, parse
from .shapes import DPO, PairShape
from .truth import Result, Truth, truth_of

NAME = "dpo"
BETA = 0.1


class Pairs:
    """Random operands: hidden [2P, T, H], the chosen rows before the rejected ones."""

    def __init__(self, shape: PairShape, dtype: torch.dtype, device: str) -> None:
        g = torch.Generator().manual_seed(0)
        rows = 2 * shape.pairs
        self.hidden = torch.randn(rows, shape.length, shape.hidden, generator=g).to(device, dtype)
        self.weight = random_head(shape.vocab, shape.hidden, dtype, device, g)
        ids = torch.randint(0, shape.vocab, (rows, shape.length), generator=g)
        self.ids = ids.to(device)
        self.mask = torch.ones(rows, shape.length, device=device)

    def step(self, calls: Any) -> Callable[[], Result] | None:
        if calls.dpo is None:
            return None

        def run() -> Result:
            hidden = self.hidden.detach().requires_grad_()
            weight = self.weight.detach().requires_grad_()
            loss = calls.dpo(hidden, weight, self.ids, self.mask, ref_logp=None, beta=BETA)
            grad_hidden, grad_weight = torch.autograd.grad(loss, (hidden, weight))
            return Result({"loss": loss.detach()}, grad_hidden.flatten(0, 1), grad_weight)

        return run

    def truth(self) -> Truth:
        def objective(logp: Tensor, _: Tensor) -> Tensor:
            chosen, rejected = logp.view(self.ids.shape).sum(1).chunk(2)
            return -F.logsigmoid(BETA * (chosen - rejected)).mean()

        return truth_of(self.hidden.flatten(0, 1), self.weight, self.ids.flatten(), objective)


def make_case(shape: PairShape, dtype: str, options: Options) -> Case:
    pairs = Pairs(shape, DTYPES[dtype], options.device)
    return Case(
        shape=shape,
        operation="dpo",
        dtype=dtype,
        sides=provider_sides(options, pairs.step),
        truth=pairs.truth,
        rows=pairs.hidden.flatten(0, 1),
        weight=pairs.weight,
        positions=shape.live,
    )


def cases(options: Options) -> Iterator[Callable[[], Case]]:
    for name in options.shapes or (("quick",) if options.quick else ("pairs",)):
        for dtype in options.dtypes:
            yield partial(make_case, DPO[name], dtype, options)


def run(options: Options) -> int:
    return run_cases(NAME, cases(options), options)


def main(argv: Sequence[str] | None = None) -> int:
    return run(parse(__doc__, shapes=DPO, argv=argv))


if __name__ == "__main__":
    sys.exit(main())
