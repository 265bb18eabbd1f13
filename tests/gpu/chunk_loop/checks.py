"""Checks of the public functions on the chunk loop, with any kernels behind it.

Each check takes a place: a backend and the device of its tensors. The truth is the reference in
float64, and errors are compared with those of plain torch in the same dtype (tests/tolerances.py).
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple
from unittest import mock

import torch

import wavalign_fast as wf
from tests.losses.formula import LAYOUT, random_batch
from tests.tolerances import FLOOR, GRADIENT_FACTOR, VALUE_FACTOR, relative_error
from wavalign_fast.ops import operands as entry
from wavalign_fast.ops.chunked.chunks import PRODUCT_ROWS

REFERENCE = wf.LossOptions(backend="reference")
SMALL = 4096
"""A budget for the rows of one GEMM, which gives several chunks."""
ROWS = 2 * PRODUCT_ROWS + 37


CONFIGS = {
    "plain": {},
    "clipped": {"policy_scope": "all", "clip": (0.2, 0.3), "speech_weight": 0.5}
    | {"text_kl": 0.1, "speech_kl": 0.3},
    "by-token": {"policy_scope": "speech", "normalisation": "token", "kl_scope": "completion"}
    | {"text_kl": 0.1, "speech_kl": 0.3},
    "by-sequence": {"importance_sampling_level": "sequence", "policy_scope": "all", "clip": 0.2},
}


class Place(NamedTuple):
    """Where a check runs."""

    device: str
    dtype: torch.dtype


@contextmanager
def on(backend: str) -> Iterator[None]:
    """Runs every call on ``backend``, wherever its tensors are, except calls for the reference."""

    def choose(options: wf.LossOptions, hidden: torch.Tensor) -> str:
        return "reference" if options.backend == "reference" else backend

    # No id is refused: on a GPU the host does not read them.
    unseen = mock.patch.object(entry, "_check_ids", lambda *ids: None)
    with mock.patch.object(entry, "choose_backend", choose), unseen:
        yield


class Operands(NamedTuple):
    hidden: torch.Tensor
    weight: torch.Tensor
    targets: torch.Tensor
    bias: torch.Tensor | None

    def to(self, dtype: torch.dtype, device: str = "cpu") -> "Operands":
        move = {"device": device, "dtype": dtype}
        bias = None if self.bias is None else self.bias.to(**move)
        hidden, weight = self.hidden.to(**move), self.weight.to(**move)
        return Operands(hidden, weight, self.targets.to(device), bias)


def operands(place: Place, rows: int = ROWS, *, bias: bool = False, vocab: int = 61) -> Operands:
    g = torch.Generator().manual_seed(rows)
    targets = torch.randint(0, vocab, (rows,), generator=g)
    targets[torch.rand(rows, generator=g) < 0.1] = -100
    return Operands(
        torch.randn(rows, 24, generator=g).to(place.device, place.dtype),
        (torch.randn(vocab, 24, generator=g) * 0.7).to(place.device, place.dtype),
        targets.to(place.device),
        torch.randn(vocab, generator=g).to(place.device, place.dtype) if bias else None,
    )


Values = Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


def ours(
    options: wf.LossOptions | None = None,
    temperature: float = 1.0,
    transform: wf.LogitTransform | None = None,
) -> Values:
    def values(hidden, weight, targets, bias):
        return wf.linear_logprob(
            hidden,
            weight,
            targets,
            bias=bias,
            temperature=temperature,
            with_entropy=True,
            transform=transform,
            options=options,
        )[:3]

    return values


def plain_torch(temperature: float) -> Values:
    """As a model does it: logits in the operands' type."""

    def values(hidden, weight, targets, bias):
        z = (hidden @ weight.T / temperature + (0 if bias is None else bias)).float()
        every = torch.log_softmax(z, -1)
        found = (
            every.gather(1, targets.clamp(min=0)[:, None])[:, 0],
            -(every.exp() * every).sum(-1),
            z.logsumexp(-1),
        )
        return tuple(torch.where(targets != -100, value, 0.0) for value in found)

    return values


def everything(given: Operands, values: Values) -> dict[str, torch.Tensor]:
    """Values and gradients of a random sum of log-probs, entropies and log-sum-exps."""
    leaves = [t if t is None else t.clone().requires_grad_() for t in (*given[:2], given.bias)]
    out = values(*leaves[:2], given.targets, leaves[2])
    g = torch.Generator().manual_seed(5)
    coefficients = torch.randn(3, *given.targets.shape, generator=g)
    coefficients[:, :20] = 0.0  # rows whose gradient is zero
    coefficients = coefficients.to(out[0].device, out[0].dtype)
    sum((c * v).sum() for c, v in zip(coefficients, out, strict=True)).backward()
    found = dict(zip(("logp", "entropy", "lse"), (v.detach() for v in out), strict=True))
    names = ("grad_hidden", "grad_weight", "grad_bias")
    grads = {n: t.grad for n, t in zip(names, leaves, strict=True) if t is not None}
    return {name: value.cpu() for name, value in (found | grads).items()}


def assert_as_good_as_torch(
    found: dict[str, torch.Tensor], plain: dict[str, torch.Tensor], truth: dict[str, torch.Tensor]
) -> None:
    assert found.keys() == truth.keys()
    for name, wanted in truth.items():
        factor = GRADIENT_FACTOR if name.startswith("grad") else VALUE_FACTOR
        allowed = factor * relative_error(plain[name], wanted) + FLOOR[torch.float32]
        assert relative_error(found[name], wanted) <= allowed, name


def logprob_agrees(
    place: Place, *, bias: bool, budget: int | None, temperature: float, rows: int = ROWS
) -> None:
    given = operands(place, rows, bias=bias)
    host = given.to(place.dtype)
    assert_as_good_as_torch(
        everything(given, ours(wf.LossOptions(memory_budget=budget), temperature)),
        everything(host, plain_torch(temperature)),
        everything(host.to(torch.float64), ours(REFERENCE, temperature)),
    )


def bits_do_not_depend_on_the_batch(place: Place) -> None:
    given = operands(place)
    asked = {"with_entropy": True, "with_top": True}
    whole = wf.linear_logprob(*given[:3], **asked)
    small = wf.linear_logprob(*given[:3], **asked, options=wf.LossOptions(memory_budget=SMALL))
    for rows in (slice(0, ROWS), slice(3, 4), slice(5, 400), slice(ROWS - 1, ROWS)):
        part = wf.linear_logprob(given.hidden[rows], given.weight, given.targets[rows], **asked)
        for values, all_at_once, in_chunks in zip(part, whole, small, strict=True):
            assert torch.equal(values, all_at_once[rows])
            assert torch.equal(values, in_chunks[rows])


def given_capacity_changes_nothing(place: Place, *, rows: int = ROWS, spare: int = 300) -> None:
    """Also with ``spare`` rows more than are live."""
    given = operands(place, rows)
    live = int((given.targets != -100).sum())
    exact = everything(given, ours())
    for capacity in (live, live + spare):
        found = everything(given, ours(wf.LossOptions(live_rows=capacity)))
        for name, wanted in exact.items():
            # The head's gradient is a sum over rows, and more rows may be summed in another order.
            same = torch.equal(found[name], wanted)
            assert same or relative_error(found[name], wanted) <= FLOOR[place.dtype], name
    out = wf.linear_logprob(*given[:3], options=wf.LossOptions(live_rows=live - 1))
    assert out.logp.isnan().all()


def a_bad_id_poisons_itself_alone(place: Place) -> None:
    given = operands(place)
    live = torch.nonzero(given.targets != -100).squeeze(-1)
    bad = int(live[7])
    targets = given.targets.clone()
    targets[bad] = given.weight.shape[0] + 5
    leaves = [t.clone().requires_grad_() for t in given[:2]]
    out = wf.linear_logprob(*leaves, targets)
    assert torch.nonzero(out.logp.isnan()).tolist() == [[bad]]
    out.logp.sum().backward()
    assert all(bool(leaf.grad.isfinite().all()) for leaf in leaves)
    assert not leaves[0].grad[bad].any() and leaves[0].grad[int(live[8])].any()


def nothing_to_do_gives_zeros(place: Place) -> None:
    for rows, ignored in ((0, False), (5, True)):
        given = operands(place, rows)
        if ignored:
            given = given._replace(targets=torch.full_like(given.targets, -100))
        found = everything(given, ours())
        assert not any(value.any() for value in found.values())
        assert found["grad_weight"].shape == given.weight.shape


class Step(NamedTuple):
    """A hybrid step's operands, on the CPU in float64."""

    batch: wf.HybridBatch
    hidden: torch.Tensor
    weight: torch.Tensor


def some_step() -> Step:
    return Step(*random_batch(random.Random(3), 2, 3, 2, reference=True, old=True, importance=True))


def at(place: Place, step: Step) -> tuple[torch.Tensor, torch.Tensor]:
    """Copies of the operands."""
    hidden, weight = (t.clone().to(place.device, place.dtype) for t in step[1:])
    return hidden, weight


def hybrid(
    step: Step, place: Place, options: wf.LossOptions | None, config: dict
) -> dict[str, torch.Tensor]:
    """Values, metrics and gradients of a step at a place."""
    objective = wf.HybridObjective(LAYOUT, gate=0.625, options=options, **config)
    hidden, weight = (leaf.requires_grad_() for leaf in at(place, step))
    out = objective(hidden, weight, step.batch.to(torch.device(place.device)))
    (out.loss * 1.5).backward()
    values = {"loss": out.loss, "policy_loss": out.policy_loss, "logp": out.logp}
    values |= {f"metric_{name}": value for name, value in out.metrics.items()}
    values |= {"grad_hidden": hidden.grad, "grad_weight": weight.grad}
    return {name: value.detach().double().cpu() for name, value in values.items()}


def hybrid_agrees(step: Step, place: Place, name: str) -> None:
    config = CONFIGS[name]
    # The truth uses the operands as rounded to this dtype.
    rounded = step._replace(
        hidden=step.hidden.to(place.dtype).double(), weight=step.weight.to(place.dtype).double()
    )
    truth = hybrid(rounded, Place("cpu", torch.float64), REFERENCE, config)
    found = hybrid(step, place, None, config)
    assert found.keys() == truth.keys()
    # Gradients are computed from operands rounded to bf16: 2^-9 for each GEMM.
    for name, wanted in truth.items():
        grad = name.startswith("grad") and place.dtype != torch.float32
        tolerance = 1e-2 if grad else 1e-12 if place.dtype == torch.float64 else 3e-5
        bound = tolerance * max(1.0, float(wanted.abs().max()) if wanted.numel() else 0.0)
        assert found[name].shape == wanted.shape
        worst = float((found[name] - wanted).abs().max()) if wanted.numel() else 0.0
        assert worst <= bound, f"{name}: {worst:.2e}, want at most {bound:.2e}"


def one_backward_pass_and_no_second_derivative(step: Step, place: Place) -> None:
    objective = wf.HybridObjective(LAYOUT, gate=0.625)
    hidden, weight = at(place, step)
    hidden.requires_grad_()
    batch = step.batch.to(torch.device(place.device))
    loss = objective(hidden, weight, batch).loss
    loss.backward(retain_graph=True)
    assert _raises(lambda: loss.backward(), "second backward pass")
    loss = objective(hidden, weight, batch).loss
    factor = torch.ones((), device=place.device, dtype=loss.dtype, requires_grad=True)
    assert _raises(
        lambda: torch.autograd.grad(loss, hidden, factor, create_graph=True), "second derivative"
    )


def _raises(call, words: str) -> bool:
    try:
        call()
    except RuntimeError as error:
        return words in str(error)
    return False


def head_alone_or_states_alone(step: Step, place: Place) -> None:
    """A frozen operand gets no gradient, and the other operand's is unchanged."""
    both = hybrid(step, place, None, {})
    objective = wf.HybridObjective(LAYOUT, gate=0.625)
    batch = step.batch.to(torch.device(place.device))
    for name in ("hidden", "weight"):
        leaves = dict(zip(("hidden", "weight"), at(place, step), strict=True))
        leaves[name].requires_grad_()
        (objective(**leaves, batch=batch).loss * 1.5).backward()
        torch.testing.assert_close(leaves[name].grad.double().cpu(), both[f"grad_{name}"])
        other = leaves["weight" if name == "hidden" else "hidden"]
        assert other.grad is None
