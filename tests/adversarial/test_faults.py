"""The adversarial suite finds the faults that it exists for: each is planted and must be found."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.adversarial import CASES, Failed
from benchmarks.adversarial.problem import PLAIN
from benchmarks.providers import Calls, dpo_from, grpo_from

BY_NAME = {case.name: case for case in CASES}


def same(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True, kw_only=True)
class Faults:
    """Faults of a head that is right without them."""

    logits: Callable[[Tensor], Tensor] = same
    logp: Callable[[Tensor], Tensor] = same
    targets: Callable[[Tensor, int], Tensor] = lambda targets, _v: targets
    grad_output: Callable[[Tensor], Tensor] = same
    dlogits: Callable[[Tensor], Tensor] = same
    grad_weight: Callable[[Tensor, Tensor], Tensor] = lambda dlogits, hidden: dlogits.T @ hidden


class _Head(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, faults: Faults
    ) -> Tensor:
        ids = faults.targets(targets, len(weight))
        live = ids != -100
        logits = faults.logits(hidden.float() @ weight.float().T)
        logp = torch.where(live.unsqueeze(1), torch.log_softmax(logits, -1), 0.0)
        ctx.save_for_backward(hidden, weight, ids.where(live, 0), live, logp)
        ctx.faults = faults
        return faults.logp(logp.gather(1, ids.where(live, 0).unsqueeze(1)).squeeze(1))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, ids, live, logp = ctx.saved_tensors
        one_hot = torch.zeros_like(logp).scatter_(1, ids.unsqueeze(1), 1.0)
        g = (ctx.faults.grad_output(grad) * live).unsqueeze(1)
        dlogits = ctx.faults.dlogits(g * (one_hot - logp.exp()))
        grad_weight = ctx.faults.grad_weight(dlogits, torch.where(g != 0, hidden.float(), 0.0))
        grad_hidden = dlogits @ weight.float()
        return grad_hidden.to(hidden.dtype), grad_weight.to(weight.dtype), None, None


def head(**faults: Any) -> Calls:
    return Calls(
        logp=lambda hidden, weight, ids: _Head.apply(hidden, weight, ids, Faults(**faults))
    )


def whole_tiles(logits: Tensor) -> Tensor:
    """Ignores the ids behind the last full tile of 128."""
    end = logits.shape[1] // 128 * 128
    return logits.masked_fill(torch.arange(logits.shape[1]) >= max(end, 1), -1e9)


def maximum_from_zero(logits: Tensor) -> Tensor:
    """exp(z - max(0, ...)) underflows for a row of -300."""
    top = logits.amax(-1, keepdim=True).clamp(min=0)
    return torch.log(torch.exp(logits - top)) + top


def in_bf16(dlogits: Tensor, hidden: Tensor) -> Tensor:
    total = torch.zeros(dlogits.shape[1], hidden.shape[1], dtype=torch.bfloat16)
    for first in range(0, len(hidden), 256):
        part = slice(first, first + 256)
        total += (dlogits[part].T @ hidden[part]).bfloat16()
    return total


def contiguous_by_force(grad: Tensor) -> Tensor:
    """Reads the memory of a gradient as if it were contiguous."""
    return torch.as_strided(grad, grad.shape, (1,))


PLANTED = {
    "vocab-168072": head(logp=lambda logp: logp + 123),
    "vocab-151939": head(logits=whole_tiles),
    "offset-minus-300": head(logits=maximum_from_zero),
    "never-positive": head(logp=lambda logp: logp + 1e-6),
    "weight-gradient-rows": head(grad_weight=in_bf16),
    "random-grad-output": head(grad_output=lambda grad: grad[:1].expand_as(grad)),
    "expanded-grad-output": head(grad_output=lambda grad: grad * len(grad)),
    "strided-grad-output": head(grad_output=contiguous_by_force),
    "some-ignored": head(targets=lambda targets, _v: targets.where(targets >= 0, 0)),
    "bad-target": head(targets=lambda targets, v: targets.remainder(v)),
    "small-probabilities": head(dlogits=lambda d: d.where(d.abs() > 1e-4, 0.0)),
    "bf16-trained-scale": head(logits=lambda logits: logits.bfloat16().float()),
    "batch-invariance-fp32": head(logp=lambda logp: logp - 1e-6 * len(logp)),
    "repeatable": head(logp=lambda logp: logp + 1e-3 * torch.rand(())),
    "probabilities-sum-to-one": head(dlogits=lambda d: d * (1 + 1e-3 * (d > 0))),
    "linear-in-coefficients": head(grad_output=lambda grad: grad.clamp(-1, 1)),
    "row-order": head(grad_output=lambda grad: grad * torch.linspace(1, 2, len(grad))),
    "micro-batches": head(grad_weight=lambda d, hidden: d.T @ hidden / len(hidden)),
    "large-and-small-gradients": head(grad_output=lambda grad: grad.clamp(-100, 100)),
    "double-backward": head(),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_found(name: str) -> None:
    with pytest.raises(Failed):
        BY_NAME[name].run(PLANTED[name])


# Plain torch has no second derivative through this head and chooses products by shape.
SOUND = [name for name in PLANTED if name not in ("double-backward", "batch-invariance-fp32")]


@pytest.mark.parametrize("name", SOUND)
def test_the_head_passes_without_the_fault(name: str) -> None:
    BY_NAME[name].run(head())


def plain_grpo(**faults: Any) -> Calls:
    """The policy loss of trainers, which changes some of its arguments."""
    loss = grpo_from(PLAIN.logp)

    def faulty(hidden, weight, ids, mask, rewards, *, old_logp=None, clip=0.2):
        given = {"mask": mask, "rewards": rewards, "old_logp": old_logp, "clip": clip}
        given |= {name: change(given[name]) for name, change in faults.items()}
        mask, rewards = given.pop("mask"), given.pop("rewards")
        return loss(hidden, weight, ids, mask, rewards, **given)

    return Calls(logp=PLAIN.logp, grpo=faulty)


@pytest.mark.parametrize(
    ("name", "calls"),
    [
        ("grpo", plain_grpo(old_logp=lambda _: None)),
        ("grpo", plain_grpo(clip=lambda _: 1e9)),
        ("grpo", plain_grpo(mask=torch.ones_like)),
        ("grpo-row-masked", plain_grpo(mask=torch.ones_like)),
        ("grpo-all-masked", plain_grpo(mask=torch.ones_like)),
        ("grpo-equal-rewards", plain_grpo(rewards=lambda r: r + torch.tensor([[0.0, 1.0]]))),
        ("grpo-nan-under-mask", plain_grpo()),
        ("grpo-ratio-overflow-clipped", plain_grpo()),
    ],
)
def test_a_planted_fault_of_the_policy_loss_is_found(name: str, calls: Calls) -> None:
    with pytest.raises(Failed):
        BY_NAME[name].run(calls)


def test_an_entropy_without_gradient_is_found() -> None:
    def detached(*operands: Tensor) -> tuple[Tensor, Tensor]:
        logp, entropy = PLAIN.logp_entropy(*operands)
        return logp, entropy.detach()

    with pytest.raises(Failed):
        BY_NAME["entropy"].run(Calls(logp=PLAIN.logp, logp_entropy=detached))


def test_a_negative_entropy_is_found() -> None:
    def shifted(*operands: Tensor) -> tuple[Tensor, Tensor]:
        logp, entropy = PLAIN.logp_entropy(*operands)
        return logp, entropy - 1e-6

    with pytest.raises(Failed):
        BY_NAME["entropy-bounds"].run(Calls(logp=PLAIN.logp, logp_entropy=shifted))


def off_by_a_tenth(values: Tensor) -> Tensor:
    """The same values, with 1.1 times the right gradients."""
    return values * 1.1 - values.detach() * 0.1


GRADIENT_OFF = Calls(
    logp=lambda *operands: off_by_a_tenth(PLAIN.logp(*operands)),
    logp_entropy=lambda *operands: tuple(map(off_by_a_tenth, PLAIN.logp_entropy(*operands))),
    grpo=lambda *operands, **options: off_by_a_tenth(
        grpo_from(PLAIN.logp)(*operands, **options)
    ),
    dpo=lambda *operands, **options: off_by_a_tenth(dpo_from(PLAIN.logp)(*operands, **options)),
    ce=lambda hidden, weight, targets: off_by_a_tenth(
        -PLAIN.logp(hidden, weight, targets).sum() / (targets >= 0).sum()
    ),
)  # fmt: skip


@pytest.mark.parametrize(
    "name",
    "one-row vocab-129920 vocab-151937 vocab-168055 vocab-300007 vocab-97 vocab-2 hidden-sizes "
    "spread-10000 offset-plus-20000 many-rows values-bf16 entropy entropy-bf16 bias banned-speech "
    "banned-text-entropy banned-by-bias banned-by-bias-entropy strided-operands tied-head "
    "lora-head frozen-hidden frozen-head autocast compile-fullgraph two-calls gradient-buffer "
    "random-grad-output grpo dpo grpo-row-masked mean-some-ignored".split(),
)
def test_a_gradient_that_is_off_is_found(name: str) -> None:
    with pytest.raises(Failed):
        BY_NAME[name].run(GRADIENT_OFF)


class _NaNGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return torch.full_like(grad, torch.nan)


def stateful() -> Calls:
    """A backward pass that has consumed its buffers when it runs again."""
    passes = []

    def worn(dlogits: Tensor) -> Tensor:
        passes.append(0)
        return dlogits / len(passes)

    return head(dlogits=worn)


def by_requires_grad(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return PLAIN.logp(hidden, weight, targets) - 1e-3 * hidden.requires_grad


def by_dtype(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    wrong = hidden.dtype != weight.dtype or targets.dtype == torch.int32
    return PLAIN.logp(hidden.to(weight.dtype), weight, targets.long()) + 0.1 * wrong


def of_the_shard(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    local = weight.to_local() if hasattr(weight, "to_local") else weight
    return PLAIN.logp(hidden, local * 1.1, targets)


@pytest.mark.parametrize(
    ("name", "calls"),
    [
        ("retain-graph", stateful()),
        ("no-rows", Calls(logp=lambda *_: torch.zeros(0, requires_grad=True))),
        ("all-ignored", Calls(logp=lambda *_: torch.zeros(12, requires_grad=True))),
        ("mean-all-ignored", GRADIENT_OFF),
        ("vocab-1", head(logp=lambda logp: logp - 0.1)),
        ("value-without-gradient", Calls(logp=by_requires_grad)),
        ("int32-targets", Calls(logp=by_dtype)),
        ("mixed-dtypes", Calls(logp=by_dtype)),
        ("dtensor-head", Calls(logp=of_the_shard)),
        ("batch-invariance-bf16", head(logp=lambda logp: logp - 1e-6 * len(logp))),
        ("batch-invariance-gradient", head(grad_output=lambda g: g * (1 + 0.01 * len(g)))),
        (
            "entropy-without-change",
            Calls(
                logp=PLAIN.logp,
                logp_entropy=lambda *operands: (PLAIN.logp(*operands) - 1e-6, None),
            ),
        ),
        ("grpo-ids-under-mask", plain_grpo(mask=torch.ones_like)),
        ("grpo-nan-scores-under-mask", plain_grpo()),
        ("dpo-nan-under-mask", GRADIENT_OFF),
        (
            "grpo-micro-batches",
            Calls(
                logp=PLAIN.logp,
                grpo=lambda *operands, **options: (
                    grpo_from(PLAIN.logp)(*operands, **options) * operands[3].sum()
                ),
            ),
        ),
        (
            "grpo-ratio-overflow",
            Calls(
                logp=PLAIN.logp,
                grpo=lambda hidden, weight, *_, **__: (
                    _NaNGradient.apply(hidden).sum() + weight.sum()
                ),
            ),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_fault_of_a_single_case_is_found(name: str, calls: Calls) -> None:
    with pytest.raises(Failed):
        BY_NAME[name].run(calls)
