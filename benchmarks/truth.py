"""The check of every side: values and gradients against float64, in vocabulary slices."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

SLICE = 16384
Objective = Callable[[Tensor, Tensor], Tensor]
"""(log-probs [N], entropies [N]) -> the scalar that is differentiated."""


class Result(NamedTuple):
    """The result of one forward and backward pass."""

    values: Mapping[str, Tensor]
    """By the names of ``Truth.values``; a value that a side lacks is not checked."""
    grad_hidden: Tensor
    """[N, H], the rows of ``Truth``."""
    grad_weight: Tensor
    """[V, H]"""


@dataclass(frozen=True)
class Tolerance:
    """Largest errors: values in nats, gradients relative to the largest gradient."""

    value: float
    gradient: float

    def refuses(self, errors: Mapping[str, float]) -> list[str]:
        """Names of the errors that are too large; NaN always is."""
        return [
            name
            for name, error in errors.items()
            if not error <= (self.gradient if name.startswith("grad") else self.value)
        ]


OURS = {
    # dlogits are bf16 operands, with a relative rounding of 2^-8.
    torch.bfloat16: Tolerance(value=1e-4, gradient=1e-2),
    torch.float32: Tolerance(value=5e-5, gradient=1e-5),
}
RIVALS = {
    # Rivals round logits, one of them log-probs, to bf16; a wrong result has a larger error.
    torch.bfloat16: Tolerance(value=0.5, gradient=0.1),
    torch.float32: Tolerance(value=1e-3, gradient=1e-3),
}


class Truth(NamedTuple):
    """The float64 results on the same operands."""

    values: dict[str, Tensor]
    """"logp" and "entropy" [N], "loss" 0-d."""
    grad_hidden: Tensor
    grad_weight: Tensor
    """Kept in float32: its rounding is far below every tolerance, and V x H is large."""

    def scattered(self, live: Tensor, positions: int) -> "Truth":
        """The truth of all positions; only those in the index ``live`` carry loss."""

        def scatter(rows: Tensor) -> Tensor:
            zeros = rows.new_zeros(positions, *rows.shape[1:])
            return rows if rows.dim() == 0 else zeros.index_copy_(0, live, rows)

        values = {name: scatter(value) for name, value in self.values.items()}
        return Truth(values, scatter(self.grad_hidden), self.grad_weight)

    def errors(self, result: Result) -> dict[str, float]:
        """Largest errors of a result."""
        found = {
            name: (value.double() - self.values[name]).abs().max().item()
            for name, value in result.values.items()
        }
        for name in ("grad_hidden", "grad_weight"):
            want, got = getattr(self, name), getattr(result, name)
            slices = zip(want.split(SLICE), got.split(SLICE), strict=True)
            # A tensor's max propagates NaN, Python's does not.
            worst = torch.stack([(g.double() - w.double()).abs().max() for w, g in slices]).max()
            found[name] = (worst / want.abs().max()).item()
        return found


def truth_of(hidden: Tensor, weight: Tensor, targets: Tensor, objective: Objective) -> Truth:
    """Float64 values and gradients of ``objective`` over the rows ``hidden`` [N, H].

    With d objective / d logp = g and d objective / d entropy = e,
    d objective / d logits = g (onehot - p) - e p (log p + entropy).
    """
    rows = hidden.double()
    slices = [slice(v, v + SLICE) for v in range(0, weight.shape[0], SLICE)]
    parts = [_slice_statistics(rows @ weight[s].double().T) for s in slices]
    lses = torch.stack([lse for lse, _ in parts])  # [slices, N]
    lse = lses.logsumexp(0)
    mean_logit = (torch.exp(lses - lse) * torch.stack([mean for _, mean in parts])).sum(0)
    logp = ((rows * weight[targets].double()).sum(-1) - lse).requires_grad_()
    entropy = (lse - mean_logit).requires_grad_()
    loss = objective(logp, entropy)
    g, e = torch.autograd.grad(loss, (logp, entropy), materialize_grads=True, allow_unused=True)

    grad_hidden = g[:, None] * weight[targets].double()
    grad_weight = torch.empty(weight.shape, dtype=torch.float32, device=weight.device)
    for s in slices:
        block = weight[s].double()
        log_p = rows @ block.T - lse[:, None]  # [N, slice]
        dlogits = -log_p.exp() * (g[:, None] + e[:, None] * (log_p + entropy.detach()[:, None]))
        grad_hidden += dlogits @ block
        inside = (targets >= s.start) & (targets < s.start + block.shape[0])
        part = dlogits.T @ rows
        part.index_add_(0, targets[inside] - s.start, (g[:, None] * rows)[inside])
        grad_weight[s] = part
    values = {"logp": logp.detach(), "entropy": entropy.detach(), "loss": loss.detach()}
    return Truth(values, grad_hidden, grad_weight)


def _slice_statistics(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(lse, mean logit under the slice's own softmax) of [N, slice]."""
    lse = logits.logsumexp(-1)
    return lse, (torch.exp(logits - lse[:, None]) * logits).sum(-1)
