"""An op under autograd, compilation and autocast, and with shared or sharded heads."""

import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from ..providers import Calls
from .case import REFUSALS, Failed, case, error_line, refusal, want
from .problem import (
    PLAIN,
    Problem,
    coefficients,
    compare,
    gradient,
    largest_logit,
    problem,
    results,
)


def _relative(seen: Tensor, true: Tensor) -> float:
    return ((seen.double() - true.double()).abs().max() / true.abs().max()).item()


def _leaves(p: Problem) -> tuple[Tensor, Tensor]:
    return p.hidden.clone().requires_grad_(), p.weight.clone().requires_grad_()


def _loss(calls: Calls, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return (calls.logp(hidden, weight, targets) * coefficients(len(targets))).sum()


@case("tied-head", "Embedding and head are one tensor: its gradient has both parts", items=(10,))
def tied_head_gets_both_gradients(calls: Calls) -> None:
    p = problem(60, 16, 3001)
    ids = torch.randint(0, 3001, (60,), generator=torch.Generator().manual_seed(4))

    def grad(side: Calls, table: Tensor) -> Tensor:
        table = table.clone().requires_grad_()
        _loss(side, torch.tanh(table[ids] * 3), table, p.targets).backward()
        return gradient("the shared table", table)

    error = _relative(grad(calls, p.weight), grad(PLAIN, p.weight.double()))
    want(error <= 1e-5, f"off by {error:.1e}, want at most 1e-5")


@case("lora-head", "A head W + BA made on the fly: A and B get their gradients, W none",
      items=(22,), source="trl#4612, trl#5977")  # fmt: skip
def lora_factors_get_gradients(calls: Calls) -> None:
    p = problem(60, 16, 3001)
    g = torch.Generator().manual_seed(4)
    factors = [torch.randn(3001, 4, generator=g), torch.randn(4, 16, generator=g) / 4]

    def grads(side: Calls, dtype: torch.dtype) -> list[Tensor]:
        b, a = (f.to(dtype).clone().requires_grad_() for f in factors)
        _loss(side, p.hidden.to(dtype), p.weight.to(dtype) + b @ a, p.targets).backward()
        return [gradient("B", b), gradient("A", a)]

    for seen, true in zip(grads(calls, torch.float32), grads(PLAIN, torch.float64), strict=True):
        want(_relative(seen, true) <= 1e-5, f"off by {_relative(seen, true):.1e}, want <= 1e-5")


def _frozen(calls: Calls, which: int) -> None:
    p = problem(60, 16, 3001)
    leaves = list(_leaves(p))
    leaves[which].requires_grad_(False)
    _loss(calls, leaves[0], leaves[1], p.targets).backward()
    want(leaves[which].grad is None, "the frozen operand got a gradient")
    true = results(PLAIN, p.double())
    error = _relative(
        gradient("the other operand", leaves[1 - which]),
        (true.grad_weight, true.grad_hidden)[which],
    )
    want(error <= 1e-5, f"the other operand's gradient is off by {error:.1e}, want <= 1e-5")


@case("frozen-hidden", "Only the head learns", items=(10,))
def frozen_hidden_states(calls: Calls) -> None:
    _frozen(calls, 0)


@case("frozen-head", "The head is frozen, as under LoRA", items=(10, 22))
def frozen_head(calls: Calls) -> None:
    _frozen(calls, 1)


@case("autocast", "fp32 operands under bf16 autocast: no worse than plain torch, fp32 gradients",
      items=(10,))  # fmt: skip
def bf16_autocast(calls: Calls) -> None:
    p = problem(60, 64, 3001)
    sides = []
    for side in (calls, PLAIN):
        leaves = _leaves(p)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logp = side.logp(*leaves, p.targets)
        (logp.float() * coefficients(60)).sum().backward()
        sides.append([logp.detach(), *(gradient("a leaf", leaf) for leaf in leaves)])
    true = results(PLAIN, p.double())
    truths = (true.logp, true.grad_hidden, true.grad_weight)
    names = ("logp", "grad_hidden", "grad_weight")
    seen, usual = sides
    for name, value, plain, truth in zip(names, seen, usual, truths, strict=True):
        compare(name, value, truth, plain, value_floor=1e-5 * largest_logit(p))
    want(seen[1].dtype == torch.float32, f"a hidden gradient of {seen[1].dtype}")


@case("compile-fullgraph", "torch.compile(fullgraph=True): the same gradients, no graph break",
      items=(22,))  # fmt: skip
def compiles_without_a_graph_break(calls: Calls) -> None:
    p = problem(60, 16, 3001)
    torch._dynamo.reset()
    g = coefficients(60)
    step = torch.compile(
        lambda *operands: (calls.logp(*operands) * g).sum(), backend="aot_eager", fullgraph=True
    )
    hidden, weight = _leaves(p)
    step(hidden, weight, p.targets).backward()
    true = results(PLAIN, p.double())
    for leaf, truth in ((hidden, true.grad_hidden), (weight, true.grad_weight)):
        error = _relative(gradient("a leaf", leaf), truth)
        want(error <= 1e-5, f"off by {error:.1e}, want at most 1e-5")


@case("dtensor-head", "A DTensor head, as under FSDP2: right or refused, never silently wrong",
      items=(10,), source="cce#31, trl#6064, trl#6065")  # fmt: skip
def dtensor_head(calls: Calls) -> str:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    p = problem(60, 16, 3001)
    with tempfile.TemporaryDirectory() as folder:
        rendezvous = dist.FileStore(str(Path(folder, "store")), 1)
        dist.init_process_group("gloo", store=rendezvous, rank=0, world_size=1)
        try:
            weight = distribute_tensor(p.weight, init_device_mesh("cpu", (1,)), [Shard(0)])
            weight.requires_grad_()
            hidden = p.hidden.clone().requires_grad_()
            refused = refusal(lambda: _loss(calls, hidden, weight, p.targets).backward())
            if refused is not None:
                return f"refused: {refused}"
            true = results(PLAIN, p.double())
            grad = gradient("weight", weight)
            grad = grad.full_tensor() if hasattr(grad, "full_tensor") else grad
            for seen, truth in (
                (gradient("hidden", hidden), true.grad_hidden), (grad, true.grad_weight),
            ):  # fmt: skip
                error = _relative(seen, truth)
                want(error <= 1e-5, f"off by {error:.1e}, want at most 1e-5")
        finally:
            dist.destroy_process_group()
    return "computes it"


@case("double-backward", "Second derivatives: right or refused, never silently wrong or missing",
      items=(23,))  # fmt: skip
def double_backward(calls: Calls) -> str:
    p = problem(40, 16, 300)

    def second(side: Calls, operands: Problem) -> Tensor:
        hidden, weight = _leaves(operands)
        (first,) = torch.autograd.grad(
            _loss(side, hidden, weight, p.targets), hidden, create_graph=True
        )
        if not first.requires_grad:
            raise Failed("the first gradient has no graph: a penalty on it would have no effect")
        first.square().sum().backward()
        return gradient("hidden", hidden)

    try:
        seen = second(calls, p)
    except REFUSALS as refused:
        return f"refused: {error_line(refused)}"
    error = _relative(seen, second(PLAIN, p.double()))
    want(error <= 1e-4, f"silently wrong, off by {error:.0%}")
    return "right"


@case("retain-graph", "A second backward pass over a retained graph gives the same gradients",
      items=(23,))  # fmt: skip
def backward_twice_over_a_retained_graph(calls: Calls) -> None:
    p = problem(60, 16, 3001)
    hidden, weight = _leaves(p)
    loss = _loss(calls, hidden, weight, p.targets)
    first = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    second = torch.autograd.grad(loss, (hidden, weight))
    for a, b in zip(first, second, strict=True):
        want(bool(torch.equal(a, b)), f"they differ by {_relative(b, a):.1e}")


@case("two-calls", "Two calls with one head in a step add their gradients", items=(8, 16))
def two_calls_add_their_gradients(calls: Calls) -> None:
    p = problem(100, 16, 3001)
    weight = p.weight.clone().requires_grad_()
    halves = [p.rows(slice(60)), p.rows(slice(60, 100))]
    losses = [_loss(calls, half.hidden, weight, half.targets) for half in halves]
    torch.stack(losses).sum().backward()
    first, second = (results(PLAIN, half.double()).grad_weight for half in halves)
    error = _relative(gradient("weight", weight), first + second)
    want(error <= 1e-5, f"off by {error:.1e}, want at most 1e-5")


@case("gradient-buffer", "A .grad that is there is added to in place, as DDP and FSDP need",
      items=(20,))  # fmt: skip
def gradient_is_accumulated_in_place(calls: Calls) -> None:
    p = problem(60, 16, 3001)
    weight = p.weight.clone().requires_grad_()
    weight.grad = torch.ones_like(weight)
    address = weight.grad.data_ptr()
    _loss(calls, p.hidden, weight, p.targets).backward()
    want(weight.grad.data_ptr() == address, "the buffer was replaced")
    error = _relative(weight.grad, results(PLAIN, p.double()).grad_weight + 1)
    want(error <= 1e-5, f"off by {error:.1e}, want at most 1e-5")
