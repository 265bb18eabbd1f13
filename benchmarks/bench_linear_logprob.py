"""Log-probabilities of chosen ids under a large head: ours and every rival that is installed.

    python -m benchmarks.bench_linear_logprob [--quick] [--shape NAME] [--dtype bf16] [--save]

Times forward and backward passes to hidden states and head of three operations: log-probs,
log-probs with entropies, and the mean cross-entropy. Every side is checked against float64 first.
The exit code is 1 if ours fails the check; timings do not affect it.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .case import Case, Side, provider_sides, run_cases
from .options import DTYPES, Options, parse
from .providers import Calls
from .shapes import LOGPROB, LogprobShape
from .truth import Result, truth_of

NAME = "linear_logprob"
RETURNS = {"logp": ("logp",), "logp+entropy": ("logp", "entropy"), "mean CE": ("loss",)}
LOGIT_STD = 4.0
"""About that of a trained model."""


def random_head(
    vocab: int, hidden: int, dtype: torch.dtype, device: str, g: torch.Generator
) -> Tensor:
    """Random weight [V, H], drawn on its device: a CPU takes half a minute for a large bf16 one.

    ``g`` is a generator of the CPU; another device draws from its own.
    """
    weight = torch.empty(vocab, hidden, dtype=dtype, device=device)
    if weight.device.type != "cpu":
        g = torch.Generator(weight.device).manual_seed(0)
    return weight.normal_(0.0, LOGIT_STD / hidden**0.5, generator=g)


Own = tuple[str, str, Calls]
"""Name, label and calls of one more side of ours."""


class Operands:
    """Random hidden states, head, ids, and the coefficients of the differentiated sum."""

    def __init__(self, shape: LogprobShape, dtype: torch.dtype, device: str) -> None:
        g = torch.Generator().manual_seed(0)
        self.hidden = torch.randn(shape.rows, shape.hidden, generator=g).to(device, dtype)
        self.weight = random_head(shape.vocab, shape.hidden, dtype, device, g)
        self.targets = torch.randint(0, shape.vocab, (shape.rows,), generator=g).to(device)
        # Random coefficients: equal ones would hide a side that mixes up rows.
        self.of_logp = torch.randn(shape.rows, generator=g).to(device)
        self.of_entropy = 0.1 * torch.randn(shape.rows, generator=g).to(device)

    def leaves(self) -> tuple[Tensor, Tensor]:
        return self.hidden.detach().requires_grad_(), self.weight.detach().requires_grad_()

    def objective(self, operation: str, logp: Tensor, entropy: Tensor | None) -> Tensor:
        if operation == "mean CE":
            return -logp.mean()
        loss = (logp * self.of_logp).sum()
        if operation == "logp" or entropy is None:
            return loss
        return loss + (entropy * self.of_entropy).sum()

    def values(self, operation: str, calls: Any) -> Callable[..., dict[str, Tensor]] | None:
        """The named results of a provider's call; ``None`` where it has no such function."""
        call = {"logp": calls.logp, "logp+entropy": calls.logp_entropy, "mean CE": calls.ce}
        function, names = call[operation], RETURNS[operation]
        if function is None:
            return None

        def named(*operands: Tensor) -> dict[str, Tensor]:
            out = function(*operands)
            return dict(zip(names, out if isinstance(out, tuple) else (out,), strict=True))

        return named

    def step(self, operation: str, calls: Any) -> Callable[[], Result] | None:
        """A provider's forward and backward pass; ``None`` where it has no such function."""
        call = self.values(operation, calls)
        if call is None:
            return None

        def run() -> Result:
            hidden, weight = self.leaves()
            values = call(hidden, weight, self.targets)
            loss = values.get("loss")
            if loss is None:
                entropy = values.get("entropy")
                entropy = None if entropy is None else entropy.float()
                loss = self.objective(operation, values["logp"].float(), entropy)
            grads = torch.autograd.grad(loss, (hidden, weight))
            return Result({name: value.detach() for name, value in values.items()}, *grads)

        return run


def make_case(
    shape: LogprobShape, dtype: str, operation: str, options: Options, own: Sequence[Own] = ()
) -> Case:
    """The case of random operands: a side for each provider and each of our calls ``own``."""
    operands = Operands(shape, DTYPES[dtype], options.device)
    return case_of(operands, shape, dtype, operation, options, own)


def case_of(
    operands: Operands,
    shape: LogprobShape,
    dtype: str,
    operation: str,
    options: Options,
    own: Sequence[Own],
) -> Case:
    """The case of the given operands."""
    return Case(
        shape=shape,
        operation=operation,
        dtype=dtype,
        sides=provider_sides(options, partial(operands.step, operation))
        + [
            Side(name=name, label=label, run=operands.step(operation, calls), ours=True)
            for name, label, calls in own
        ],
        truth=lambda: truth_of(
            operands.hidden,
            operands.weight,
            operands.targets,
            partial(operands.objective, operation),
        ),
        rows=operands.hidden,
        weight=operands.weight,
        positions=shape.rows,
    )


def cases(options: Options) -> Iterator[Callable[[], Case]]:
    for name in options.shapes or (("quick",) if options.quick else ("kernel",)):
        for dtype in options.dtypes:
            for operation in options.operations or RETURNS:
                yield partial(make_case, LOGPROB[name], dtype, operation, options)


def run(options: Options) -> int:
    return run_cases(NAME, cases(options), options)


def main(argv: Sequence[str] | None = None) -> int:
    return run(parse(__doc__, shapes=LOGPROB, operations=RETURNS, argv=argv))


if __name__ == "__main__":
    sys.exit(main())
