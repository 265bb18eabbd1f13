"""Random heads, and the gradients of a weighted sum of an op's results."""

from typing import NamedTuple

import torch

from wavalign_fast.ops import LogitTransform, LossOptions, linear_logprob

REFERENCE = LossOptions(backend="reference")
CPU = LossOptions(backend="cpu")
UNBIASED = 0.1
"""The largest ``rounding_bias`` of sums that round to nearest throughout."""


class Problem(NamedTuple):
    hidden: torch.Tensor
    weight: torch.Tensor
    targets: torch.Tensor
    bias: torch.Tensor | None


def problem(
    n: int, h: int, v: int, dtype: torch.dtype, *, seed: int = 0, scale: float = 1.0,
    bias: bool = False, ignored: bool = True,
) -> Problem:  # fmt: skip
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, h, generator=g).to(dtype)
    weight = (torch.randn(v, h, generator=g) * scale / h**0.5).to(dtype)
    targets = torch.randint(0, v, (n,), generator=g)
    if ignored:
        targets[torch.rand(n, generator=g) < 0.3] = -100
    return Problem(hidden, weight, targets, torch.randn(v, generator=g) if bias else None)


def as_double(p: Problem) -> Problem:
    return Problem(
        p.hidden.double(), p.weight.double(), p.targets, None if p.bias is None else p.bias.double()
    )


def results(
    p: Problem, options: LossOptions, *, temperature: float = 1.0, terms: str = "logp",
    transform: LogitTransform | None = None,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """Values and gradients; ``terms`` names the results in the sum that is differentiated."""
    leaves = {
        "hidden": p.hidden.clone().requires_grad_(),
        "weight": p.weight.clone().requires_grad_(),
    }
    if p.bias is not None:
        leaves["bias"] = p.bias.clone().requires_grad_()
    out = linear_logprob(
        leaves["hidden"], leaves["weight"], p.targets, bias=leaves.get("bias"),
        temperature=temperature, with_entropy=True, transform=transform, options=options,
    )  # fmt: skip
    g = torch.Generator().manual_seed(7)
    loss = out.logp.new_zeros(())
    for name in terms.split():
        coefficient = torch.randn(p.targets.shape, generator=g)
        coefficient[torch.rand(p.targets.shape, generator=g) < 0.3] = 0.0
        loss = loss + (getattr(out, name) * coefficient.to(out.logp.dtype)).sum()
    loss.backward()
    values = {name: getattr(out, name).detach() for name in ("logp", "entropy", "lse")}
    return values | {f"grad_{name}": leaf.grad for name, leaf in leaves.items()}


def rounding_bias(dtype: torch.dtype, hidden_size: int) -> dict[str, float]:
    """The error of the gradients' total magnitude, in units of the dtype's precision.

    It is near 0 where every step rounds to nearest, and -1/3 or less where one truncates.

    Args:
        hidden_size: with an odd size, bfloat16 operands are multiplied in float32 everywhere.
    """
    p = problem(150, hidden_size, 700, dtype, ignored=False)
    truth, ours = results(as_double(p), REFERENCE), results(p, CPU)
    biases = {}
    for name in ("grad_hidden", "grad_weight"):
        size = truth[name].abs().sum()
        share = (ours[name].double().abs().sum() - size) / size
        biases[name] = float(share) / torch.finfo(dtype).eps
    return biases
