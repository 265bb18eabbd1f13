"""A row has the same value in every batch, close to float64 on the same operands."""

import torch
from torch import Tensor

from ..providers import Calls, Unsupported
from .case import case, want
from .problem import Problem, coefficients, problem, results


def _logp(calls: Calls, p: Problem) -> Tensor:
    with torch.no_grad():
        return calls.logp(p.hidden, p.weight, p.targets)


def _same(seen: Tensor, whole: Tensor, what: str) -> None:
    moved = seen != whole
    most = (seen.float() - whole.float()).abs().max().item()
    want(
        not bool(moved.any()),
        f"{what}: {int(moved.sum())} of {moved.numel()} values differ, by up to {most:.1e}, want "
        "the same bits",
    )


def _batches(calls: Calls, p: Problem) -> None:
    n = len(p.targets)
    whole = _logp(calls, p)
    for first, end in ((0, 1), (n - 1, n), (255, 257), (17, 290), (0, 512)):
        part = slice(first, end)
        _same(_logp(calls, p.rows(part)), whole[part], f"rows {first}:{end} on their own")
    shifted = torch.roll(torch.arange(n), 31)
    _same(_logp(calls, p.rows(shifted)), whole[shifted], "rows moved by 31")


@case("batch-invariance-bf16", "bf16: a row's log-prob has the same bits in any batch", items=(18,),
      source="verl#6280, sglang#6318")  # fmt: skip
def batch_invariance_bf16(calls: Calls) -> None:
    _batches(calls, problem(600, 256, 5000, torch.bfloat16, std=4.0))


@case("batch-invariance-fp32", "fp32: a row's log-prob has the same bits in any batch", items=(18,),
      source="verl#6280, trl#4772")  # fmt: skip
def batch_invariance_fp32(calls: Calls) -> None:
    _batches(calls, problem(600, 256, 5000, std=4.0))


@case("batch-invariance-gradient", "bf16: a row's hidden gradient has the same bits in any batch",
      items=(18,), source="verl#6280")  # fmt: skip
def batch_invariance_of_the_hidden_gradient(calls: Calls) -> None:
    p = problem(600, 256, 5000, torch.bfloat16, std=4.0)
    g = coefficients(600)
    whole = results(calls, p, g=g).grad_hidden
    for first, end in ((255, 257), (17, 290)):
        part = slice(first, end)
        seen = results(calls, p.rows(part), g=g[part]).grad_hidden
        _same(seen, whole[part], f"rows {first}:{end} on their own")


@case("repeatable", "The same call twice: the same bits, gradients too", items=(18,))
def repeated_call_has_the_same_bits(calls: Calls) -> None:
    p = problem(600, 64, 5000, torch.bfloat16)
    first, second = results(calls, p), results(calls, p)
    for name in ("logp", "grad_hidden", "grad_weight"):
        _same(getattr(second, name), getattr(first, name), name)


def _within(calls: Calls, p: Problem, most: float) -> str:
    logits = p.hidden.double() @ p.weight.double().T
    truth = torch.log_softmax(logits, -1).gather(-1, p.targets[:, None]).squeeze(1)
    error = (_logp(calls, p).double() - truth).abs().max().item()
    seen = f"largest error {error:.1e} nat against float64 on the same operands"
    want(error <= most, f"{seen}, want at most {most:.0e}")
    return seen


@case("bf16-trained-scale", "bf16, logits of standard deviation 8: errors of at most 1e-4 nat",
      items=(18,), source="verl#6280, trl#6789, Fast-LLM#525")  # fmt: skip
def bf16_error_at_trained_scale(calls: Calls) -> str:
    return _within(calls, problem(256, 256, 4099, torch.bfloat16, std=8.0), 1e-4)


@case("fp16-trained-scale", "fp16, logits of standard deviation 8: errors of at most 1e-4 nat",
      items=(18,), source="verl#6280")  # fmt: skip
def fp16_error_at_trained_scale(calls: Calls) -> str:
    return _within(calls, problem(256, 256, 4099, torch.float16, std=8.0), 1e-4)


@case("bf16-common-offset", "bf16, all logits near -300: errors of at most 1e-3 nat", items=(3, 18))
def bf16_error_under_a_common_offset(calls: Calls) -> str:
    return _within(calls, problem(128, 65, 4099, torch.bfloat16, offset=-300.0), 1e-3)


@case("value-without-gradient", "The value does not change with what asks for gradients",
      items=(18,))  # fmt: skip
def value_is_the_same_without_gradients(calls: Calls) -> None:
    p = problem(300, 64, 3001, torch.bfloat16)
    alone, with_gradients = _logp(calls, p), results(calls, p).logp
    _same(with_gradients, alone, "with gradients")


@case("entropy-without-change", "Asking for the entropy leaves the log-probability's bits alone",
      items=(12, 18))  # fmt: skip
def entropy_leaves_logp_unchanged(calls: Calls) -> None:
    if calls.logp_entropy is None:
        raise Unsupported("no entropy")
    p = problem(300, 64, 3001, torch.bfloat16)
    with torch.no_grad():
        both = calls.logp_entropy(p.hidden, p.weight, p.targets)[0]
    _same(both, _logp(calls, p), "with the entropy")
