"""Random problems, their results in float64, and the comparison of a provider with them."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..providers import Calls, Unsupported
from .case import Failed, want
from .tolerances import FLOOR, GRADIENT_FACTOR, VALUE_FACTOR, relative_error

IGNORE_INDEX = -100


class Problem(NamedTuple):
    hidden: Tensor
    weight: Tensor
    targets: Tensor
    bias: Tensor | None = None

    def double(self) -> "Problem":
        bias = None if self.bias is None else self.bias.double()
        return Problem(self.hidden.double(), self.weight.double(), self.targets, bias)

    def rows(self, index: slice | Tensor) -> "Problem":
        return self._replace(hidden=self.hidden[index], targets=self.targets[index])


class Results(NamedTuple):
    """Values and the gradients of their weighted sum; ``None`` for what was not requested."""

    logp: Tensor
    entropy: Tensor | None
    grad_hidden: Tensor
    grad_weight: Tensor
    grad_bias: Tensor | None


def problem(
    n: int, h: int, v: int, dtype: torch.dtype = torch.float32, *, seed: int = 0, std: float = 1.0,
    offset: float = 0.0, bias: bool = False,
) -> Problem:  # fmt: skip
    """Random operands whose logits have about this standard deviation, shifted by ``offset``.

    A hidden unit that is always 1 and a column of the head that holds ``offset`` make the shift.
    """
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, h, generator=g)
    weight = torch.randn(v, h, generator=g) * std / h**0.5
    if offset:
        hidden[:, -1] = 1.0
        weight[:, -1] = offset
    targets = torch.randint(0, v, (n,), generator=g)
    shift = torch.randn(v, generator=g) if bias else None
    return Problem(
        hidden.to(dtype), weight.to(dtype), targets, None if shift is None else shift.to(dtype)
    )


def coefficients(n: int, seed: int = 7) -> Tensor:
    """One per row, of both signs, some of them 0."""
    g = torch.Generator().manual_seed(seed)
    values = torch.randn(n, generator=g)
    values[torch.rand(n, generator=g) < 0.2] = 0.0
    return values


def _plain(p: Problem) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies from full logits, products in the dtype of the operands.

    A logit of -inf has probability 0 and adds nothing to the entropy; an ignored row holds 0.
    """
    logits = p.hidden @ p.weight.T
    if p.bias is not None:
        logits = logits + p.bias
    statistics = torch.float64 if logits.dtype == torch.float64 else torch.float32
    logp = torch.log_softmax(logits.to(statistics), -1)  # [N, V]
    entropy = -(logp.exp() * logp.masked_fill(logp.isneginf(), 0.0)).sum(-1)
    live = p.targets != IGNORE_INDEX
    chosen = logp.gather(-1, p.targets.long().where(live, 0).unsqueeze(-1)).squeeze(-1)
    return chosen.where(live, 0.0), entropy.where(live, 0.0)


PLAIN = Calls(
    logp=lambda *operands: _plain(Problem(*operands))[0],
    logp_entropy=lambda *operands: _plain(Problem(*operands)),
)


def results(
    calls: Calls, p: Problem, *, g: Tensor | None = None, g_entropy: Tensor | None = None
) -> Results:
    """Values, and gradients of ``Σ g logp + Σ g_entropy entropy``.

    The entropy is requested only where ``g_entropy`` is given.
    """
    given = {"hidden": p.hidden, "weight": p.weight, "bias": p.bias}
    leaves = {k: t.detach().clone().requires_grad_() for k, t in given.items() if t is not None}
    operands = [leaves["hidden"], leaves["weight"], p.targets]
    if "bias" in leaves:
        operands.append(leaves["bias"])
    entropy = None
    if g_entropy is None:
        logp = calls.logp(*operands)
    elif calls.logp_entropy is None:
        raise Unsupported("no entropy")
    else:
        logp, entropy = calls.logp_entropy(*operands)
        want(entropy is not None, "entropy: got None, want a tensor")
    compute = torch.float64 if p.hidden.dtype == torch.float64 else torch.float32
    g = coefficients(len(p.targets)) if g is None else g
    loss = (logp.to(compute) * g).sum()
    if entropy is not None and g_entropy is not None:
        loss = loss + (entropy.to(compute) * g_entropy).sum()
    loss.backward()
    grads = {f"grad_{name}": gradient(name, leaf) for name, leaf in leaves.items()}
    entropy = None if entropy is None else entropy.detach()
    return Results(logp.detach(), entropy, **({"grad_bias": None} | grads))


def gradient(name: str, leaf: Tensor) -> Tensor:
    """The gradient of a leaf; raises ``Failed`` where there is none."""
    if leaf.grad is None:
        raise Failed(f"{name} got no gradient")
    return leaf.grad


def check(
    calls: Calls, p: Problem, *, g: Tensor | None = None, g_entropy: Tensor | None = None
) -> Results:
    """Compares values and gradients with float64 on the same operands, and returns them.

    A value may have twice the error of plain torch in the same dtype, a gradient three times. A
    floor is added, because a float32 logit is rounded itself.
    """
    seen = results(calls, p, g=g, g_entropy=g_entropy)
    truth = results(PLAIN, p.double(), g=g, g_entropy=g_entropy)
    plain = results(PLAIN, p, g=g, g_entropy=g_entropy)
    value_floor = 8 * torch.finfo(torch.float32).eps * largest_logit(p)
    for name, value, true, usual in zip(Results._fields, seen, truth, plain, strict=True):
        if value is not None and true is not None and usual is not None:
            compare(name, value, true, usual, value_floor=value_floor)
    return seen


def compare(name: str, value: Tensor, truth: Tensor, plain: Tensor, *, value_floor: float) -> None:
    """Applies the rule of ``check`` to one tensor."""
    want(
        value.shape == truth.shape,
        f"{name}: got shape {tuple(value.shape)}, want {tuple(truth.shape)}",
    )
    lost = int(value.isnan().sum())
    want(lost == 0, f"{name}: {lost} of {value.numel()} are NaN")
    if name.startswith("grad"):
        error = relative_error(value, truth)
        allowed = GRADIENT_FACTOR * relative_error(plain, truth) + FLOOR[torch.float32]
    else:
        # Values are in nats, as differences of logits: below one nat the error is absolute.
        error = relative_error(value, truth, at_least=1.0)
        usual = relative_error(plain, truth, at_least=1.0)
        allowed = VALUE_FACTOR * usual + value_floor / max(1.0, truth.abs().max().item())
    if truth.numel():
        want(error <= allowed, f"{name}: relative error {error:.1e}, want at most {allowed:.1e}")


def largest_logit(p: Problem) -> float:
    logits = p.hidden.float() @ p.weight.float().T
    finite = logits[logits.isfinite()]
    return max(1.0, finite.abs().max().item()) if finite.numel() else 1.0
