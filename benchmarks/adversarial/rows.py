"""Values and gradients of rows that are ignored, absent, invalid or strided."""

import torch
from torch import Tensor

from ..providers import Calls, Unsupported
from .case import REFUSALS, case, error_line, refusal, want
from .problem import (
    IGNORE_INDEX,
    PLAIN,
    Problem,
    Results,
    check,
    coefficients,
    compare,
    gradient,
    largest_logit,
    problem,
    results,
)

LEFT_TO_CALLERS = "TRL and Liger's selective log-probs leave the mask to their callers"


def _connected_zeros(loss: Tensor, *leaves: Tensor) -> None:
    want(bool((loss == 0).all()), f"got {loss.detach().reshape(-1)[:3].tolist()}, want 0")
    loss.sum().backward()
    for name, leaf in zip(("hidden", "weight"), leaves, strict=True):
        grad = gradient(name, leaf)
        stray = grad.abs().max().item() if grad.numel() else 0.0
        want(stray == 0, f"{name} got a gradient of {stray:.1e}, want zeros")


def _leaves(p: Problem) -> tuple[Tensor, Tensor]:
    return p.hidden.clone().requires_grad_(), p.weight.clone().requires_grad_()


def _compare_gradients(
    hidden: Tensor, weight: Tensor, truth: Results, plain: Results, *, value_floor: float
) -> None:
    """Applies the rule of ``check`` to the gradients of two leaves."""
    for name, leaf in (("hidden", hidden), ("weight", weight)):
        true, usual = (getattr(r, f"grad_{name}") for r in (truth, plain))
        compare(f"grad_{name}", gradient(name, leaf), true, usual, value_floor=value_floor)


@case("all-ignored", "Every target -100: zeros and zero gradients, or refused", items=(7, 8),
      source=f"TE#2476, trl#6859; {LEFT_TO_CALLERS}")  # fmt: skip
def all_targets_ignored(calls: Calls) -> None:
    p = problem(12, 8, 300)
    leaves = _leaves(p)
    _connected_zeros(calls.logp(*leaves, torch.full((12,), IGNORE_INDEX)), *leaves)


@case("some-ignored", "Targets of -100 hold 0 and give no gradient, or are refused",
      items=(7,), source=f"Liger#974; {LEFT_TO_CALLERS}")  # fmt: skip
def some_targets_ignored(calls: Calls) -> None:
    p = problem(60, 16, 3001)
    p.targets[::3] = IGNORE_INDEX
    seen = results(calls, p)
    held = seen.logp[0].item()
    want(bool((seen.logp[::3] == 0).all()), f"an ignored row holds {held:.3f}, want 0")
    want(bool((seen.grad_hidden[::3] == 0).all()), "an ignored row has a gradient")
    check(calls, p)


@case("nan-under-ignored", "NaN in the hidden state of an ignored row stays there", items=(7, 14),
      source=f"unsloth#3006; {LEFT_TO_CALLERS}")  # fmt: skip
def nan_in_an_ignored_row(calls: Calls) -> None:
    p = problem(60, 16, 3001)
    p.targets[::3] = IGNORE_INDEX
    clean = results(calls, p)
    p.hidden[::3] = torch.nan
    dirty = results(calls, p)
    for name in ("logp", "grad_hidden", "grad_weight"):
        value, expected = getattr(dirty, name), getattr(clean, name)
        lost = int(value.isnan().sum())
        want(lost == 0, f"{name}: {lost} of {value.numel()} are NaN")
        want(bool(torch.equal(value, expected)), f"{name} changed")


@case("mean-some-ignored", "A mean cross-entropy counts only the targets that are not -100",
      items=(7,), source="Automodel#3796, Automodel#3797")  # fmt: skip
def mean_over_the_targets_that_count(calls: Calls) -> None:
    if calls.ce is None:
        raise Unsupported("no mean cross-entropy")
    p = problem(60, 16, 3001)
    p.targets[::3] = IGNORE_INDEX
    hidden, weight = _leaves(p)
    loss = calls.ce(hidden, weight, p.targets)
    loss.backward()
    live = p.targets != IGNORE_INDEX
    g = -live.float() / live.sum()
    truth, plain = results(PLAIN, p.double(), g=g), results(PLAIN, p, g=g)
    floor = 8 * torch.finfo(torch.float32).eps * largest_logit(p)
    true_mean, plain_mean = ((r.logp * g).sum() for r in (truth, plain))
    compare("loss", loss.detach(), true_mean, plain_mean, value_floor=floor)
    _compare_gradients(hidden, weight, truth, plain, value_floor=floor)


@case("mean-all-ignored", "A mean cross-entropy of nothing is 0 with zero gradients", items=(7, 14),
      source="Liger#177, TE#2476")  # fmt: skip
def mean_with_all_targets_ignored(calls: Calls) -> None:
    if calls.ce is None:
        raise Unsupported("no mean cross-entropy")
    leaves = _leaves(problem(12, 8, 300))
    _connected_zeros(calls.ce(*leaves, torch.full((12,), IGNORE_INDEX)), *leaves)


@case("no-rows", "N = 0: an empty result that is connected to the head", items=(8,),
      source="trl#6859")  # fmt: skip
def no_rows(calls: Calls) -> None:
    p = problem(4, 8, 300)
    hidden, weight = p.hidden[:0].clone().requires_grad_(), p.weight.clone().requires_grad_()
    logp = calls.logp(hidden, weight, p.targets[:0])
    want(logp.shape == (0,), f"got shape {tuple(logp.shape)}, want (0,)")
    _connected_zeros(logp, hidden, weight)


@case("one-row", "N = 1", items=(2,))
def one_row(calls: Calls) -> None:
    check(calls, problem(1, 16, 3001), g=torch.ones(1))


@case("bad-target", "A target outside the vocabulary raises or gives NaN, never a number",
      items=(13,), source="pytorch#195829")  # fmt: skip
def target_outside_the_vocabulary(calls: Calls) -> str | None:
    p = problem(12, 8, 300)
    remark = None
    for bad in (300 + 5, -7):
        targets = p.targets.clone()
        targets[3] = bad
        try:
            seen = calls.logp(p.hidden, p.weight, targets)[3].item()
        except REFUSALS as error:
            remark = f"refused: {error_line(error)}"
            continue
        want(seen != seen, f"target {bad} of 300 ids gives log-probability {seen:.3f}")
    return remark


@case("int32-targets", "int32 targets give what int64 ones do", items=(13,))
def int32_targets(calls: Calls) -> None:
    p = problem(24, 8, 300)
    check(calls, p._replace(targets=p.targets.int()))


@case("random-grad-output", "Each row's gradient is scaled by its own coefficient", items=(6, 22),
      source="Liger#968, Liger#1298, Liger#678, Automodel#3853, Liger#338")  # fmt: skip
def one_coefficient_for_each_row(calls: Calls) -> None:
    p = problem(700, 16, 3001)  # more than one chunk of every chunked provider
    check(calls, p, g=torch.randn(700, generator=torch.Generator().manual_seed(3)))


def _with_grad_output(calls: Calls, grad_output: Tensor) -> None:
    p = problem(len(grad_output), 16, 3001)
    hidden, weight = _leaves(p)
    logp = calls.logp(hidden, weight, p.targets)
    logp.backward(grad_output.to(logp.dtype))
    truth = results(PLAIN, p.double(), g=grad_output.double())
    plain = results(PLAIN, p, g=grad_output)
    _compare_gradients(hidden, weight, truth, plain, value_floor=0.0)


@case("expanded-grad-output", "A gradient of stride 0, as sum() and mean() send it", items=(6,),
      source="TE#2402, ROCm-TE#623")  # fmt: skip
def grad_output_of_stride_zero(calls: Calls) -> None:
    _with_grad_output(calls, torch.full((), 0.5).expand(60))


@case("strided-grad-output", "A gradient that is every second element of a buffer", items=(6,))
def grad_output_of_stride_two(calls: Calls) -> None:
    _with_grad_output(calls, coefficients(120)[::2])


@case("strided-operands", "Transposed, sliced and padded operands, strided targets", items=(6,))
def strided_operands(calls: Calls) -> None:
    p = problem(60, 16, 3001)
    spread = torch.zeros(60, 40)
    spread[:, 4:36:2] = p.hidden
    padded = torch.cat([p.weight, torch.full((7, 16), torch.nan)])
    layouts = {
        "transposed": (p.hidden.T.contiguous().T, p.weight.T.contiguous().T, p.targets),
        "sliced": (spread[:, 4:36:2], padded[:3001], p.targets.repeat_interleave(2)[::2]),
    }
    truth, plain = results(PLAIN, p.double()), results(PLAIN, p)
    floor = 8 * torch.finfo(torch.float32).eps * largest_logit(p)
    for layout, (hidden, weight, targets) in layouts.items():
        hidden, weight = (t.detach().requires_grad_() for t in (hidden, weight))
        logp = calls.logp(hidden, weight, targets)
        (logp.float() * coefficients(60)).sum().backward()
        values = {
            "logp": logp.detach(),
            "grad_hidden": gradient(f"{layout} hidden", hidden),
            "grad_weight": gradient(f"{layout} weight", weight),
        }
        for name, value in values.items():
            compare(name, value, getattr(truth, name), getattr(plain, name), value_floor=floor)


@case("large-and-small-gradients", "Gradients are linear from 1e-6 to 1e4 times a coefficient",
      items=(6,))  # fmt: skip
def large_and_small_gradients(calls: Calls) -> None:
    p = problem(60, 16, 3001)
    for scale in (1e4, 1e-6):
        check(calls, p, g=coefficients(60) * scale)


@case("mixed-dtypes", "bf16 hidden states under an fp32 head: right or refused", items=(10,),
      source="trl#7065, trl#7077")  # fmt: skip
def bf16_hidden_states_under_an_fp32_head(calls: Calls) -> str | None:
    p = problem(40, 16, 1000)
    mixed = p._replace(hidden=p.hidden.bfloat16())
    refused = refusal(lambda: calls.logp(mixed.hidden, mixed.weight, mixed.targets))
    if refused is not None:
        return f"refused: {refused}"
    low = mixed._replace(weight=p.weight.bfloat16())
    seen, usual = results(calls, mixed), results(calls, low)
    truth, low_truth = results(PLAIN, mixed.double()), results(PLAIN, low.double())
    for name in ("logp", "grad_hidden", "grad_weight"):
        # A provider may round the head to bf16: then the error is that of a bf16 head.
        values = [getattr(r, name).double() for r in (seen, usual, truth, low_truth)]
        error = min((values[0] - true).abs().max() for true in values[2:])
        allowed = 3 * (values[1] - values[3]).abs().max() + 1e-5
        want(bool(error <= allowed), f"{name}: error {error:.1e}, want at most {allowed:.1e}")
    want(seen.grad_weight.dtype == torch.float32, f"a head gradient of {seen.grad_weight.dtype}")
    return "computes it"
