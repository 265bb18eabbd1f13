"""Calls of the C++ kernels, and their fake kernels and derivatives as torch.library ops."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from wavalign_fast.ops.chunked.chunks import Head, Needs, head_of
from wavalign_fast.ops.chunked.interface import RowGrads, is_top
from wavalign_fast.ops.custom_ops import fake_gradients, no_context, refuse_second_derivative
from wavalign_fast.ops.extension import EXTENSION
from wavalign_fast.ops.operands import IGNORE_INDEX, Operands, wants_grad
from wavalign_fast.ops.options import LossOptions
from wavalign_fast.ops.token_math import TokenTable, token_gradient

DEFAULT_MEMORY_BUDGET = 512 * 2**20
TILE_ROWS = 256
LANE_ALIGN = 16


class CpuResults(NamedTuple):
    """What the forward op returns; its schema in ``csrc/bindings.cpp`` describes them."""

    logp: torch.Tensor
    entropy: torch.Tensor
    lse: torch.Tensor
    norm: torch.Tensor
    store: torch.Tensor
    skipped: torch.Tensor
    prob_buffer: torch.Tensor


def cpu_logprob(
    operands: Operands, ignore_index: int, *, with_top: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """``(logp, entropy, lse, top)`` of the rows of ``operands``, each [T]."""
    _, options, rows, weight, targets, bias, *_ = operands
    found = cpu_results(
        head_of(operands, rows, targets, ignore_index),
        options,
        learning=wants_grad(rows, weight, bias),
        want_prob_buffer=wants_grad(weight) and _saved_as_it_is(),
    )
    top = None
    if with_top:
        top = (targets != ignore_index) & is_top(found.logp.detach(), found.norm[1])
    return found.logp, found.entropy, found.lse, top


def cpu_results(
    head: Head, options: LossOptions, *, learning: bool, want_prob_buffer: bool
) -> CpuResults:
    """Statistics of the rows of ``head``, ignored ones included, and what their gradients need.

    Args:
        learning: whether a backward pass may follow.
        want_prob_buffer: whether that pass needs the weight's gradient, and gets these results.
    """
    budget = options.memory_budget
    kept = DEFAULT_MEMORY_BUDGET if budget is None else budget
    # Behind a soft cap a gradient needs the logits again, so probabilities are not kept.
    keeps = learning and head.softcap is None
    store = _store_bytes(head.hidden, head.weight, kept) if keeps else 0
    tolerance = options.skip_tolerance if learning else 0.0
    *operands, softcap, bias_inside = head
    cap = () if softcap is None else (softcap, bias_inside)
    return CpuResults(
        *torch.ops.wavalign_fast.linear_logprob(
            *operands, store, tolerance, want_prob_buffer and keeps, *cap
        )
    )


def cpu_gradients(
    head: Head, grads: RowGrads, results: CpuResults, needs: Needs, *, wide: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients to hidden, weight and bias; those that are not needed are empty.

    Writes that of the weight over the probability buffer of ``results``, if there is one.

    Args:
        wide: whether that of hidden is in fp32, or else in its own dtype.
    """
    kept = (results.logp, results.entropy, results.norm, results.store, results.skipped)
    *operands, softcap, bias_inside = head
    common, ops = (*grads, *operands, *kept, results.prob_buffer), torch.ops.wavalign_fast
    extra = (wide,) if softcap is None else (wide, softcap, bias_inside)
    # With grad enabled a second derivative may be wanted, which the other op refuses.
    if needs.weight and results.prob_buffer.numel() > 0 and not torch.is_grad_enabled():
        hidden, bias = ops.linear_logprob_backward_(*common, needs.hidden, needs.bias, wide)
        return hidden, results.prob_buffer, bias
    hidden, weight, bias = ops.linear_logprob_backward(*common, *needs, *extra)
    return hidden, weight, bias


def attached_derivative(
    logp: torch.Tensor,
    targets: torch.Tensor,
    table: TokenTable,
    *,
    clip: tuple[float, float] | None,
) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function that gives the hybrid loss its derivative by the log-probs [T].

    Only ``dL/dlogp`` is computed here. The gradients of the operands come from the backward pass of
    the log-probs: with the probabilities that the forward pass keeps, they take two GEMMs there.
    """
    wide = TokenTable._make(None if column is None else column.double() for column in table)
    g = token_gradient(logp.detach().double(), wide, clip)
    g = torch.where(targets == IGNORE_INDEX, 0.0, g).to(logp.dtype)

    def attach(loss: torch.Tensor) -> torch.Tensor:
        attached: torch.Tensor = _WithDerivative.apply(loss.detach(), logp, g)
        return attached

    return attach


class _WithDerivative(torch.autograd.Function):
    """A value whose derivative by a vector is given."""

    @staticmethod
    def forward(
        ctx: Any, value: torch.Tensor, vector: torch.Tensor, derivative: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(derivative)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # The backward op of the log-probs refuses a second derivative. `once_differentiable` here
        # would disconnect `grad` from that op, and a second derivative would silently be 0.
        (derivative,) = ctx.saved_tensors
        return None, grad.to(derivative.dtype) * derivative, None


def _saved_as_it_is() -> bool:
    """Whether the backward pass will most likely get the very tensors that this call saves.

    If not, a probability buffer is useless: activation checkpointing keeps no tensor of this call,
    and other hooks keep copies. A traced graph gets none either: its results have fixed shapes, but
    the kernels may refuse the buffer. Whether the buffer belongs to the saved tensors is checked by
    the kernels.
    """
    hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return not torch.compiler.is_compiling() and (hooks is None or hooks(False) is None)


def _store_bytes(rows: torch.Tensor, weight: torch.Tensor, budget: int) -> int:
    """Bytes of probabilities to keep for the backward pass: all of them, at most the budget.

    It follows from the shapes alone, so that it is known while tracing. That is an upper bound, but
    the pages of ignored rows are never touched.
    """
    item = 2 if rows.dtype == torch.bfloat16 else 4
    lanes = (rows.shape[0] + LANE_ALIGN - 1) // LANE_ALIGN * LANE_ALIGN
    tiles = (weight.shape[0] + TILE_ROWS - 1) // TILE_ROWS
    return min(budget, 64 + tiles * lanes * (4 + TILE_ROWS * item))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    hidden, weight, targets, bias, temperature, ignore_index, *_, softcap, bias_inside = inputs
    ctx.set_materialize_grads(False)
    logp, entropy, _, norm, store, skipped, prob_buffer = output
    ctx.mark_non_differentiable(norm, store, skipped, prob_buffer)
    ctx.save_for_backward(hidden, weight, targets, bias, logp, entropy, norm, store, skipped)
    ctx.numbers = (temperature, ignore_index, softcap, bias_inside)
    # Not a saved tensor: the first backward pass overwrites the buffer, after which autograd would
    # refuse a second one. Instead the first takes the buffer, and the next recomputes the
    # probabilities. So does a backward pass that autograd gives the saved tensors of another
    # forward pass: the store holds the id of its probability buffer.
    ctx.prob_buffer = prob_buffer


def _backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    hidden, weight, targets, bias, logp, entropy, norm, store, skipped = ctx.saved_tensors
    needs = Needs(*(ctx.needs_input_grad[i] for i in (0, 1, 3)))
    # No gradient reads lse; the log-probs fill its place.
    results = CpuResults(logp, entropy, logp, norm, store, skipped, ctx.prob_buffer)
    if needs.weight and not torch.is_grad_enabled():
        # `ctx` must not hold the gradient too, or autograd copies it.
        ctx.prob_buffer = ctx.prob_buffer.new_empty(0)
    head = Head(hidden, weight, targets, bias, *ctx.numbers)
    found = cpu_gradients(head, RowGrads(*grads[:3]), results, needs)
    grad_hidden, grad_weight, grad_bias = (
        grad if need else None for grad, need in zip(found, needs, strict=True)
    )
    return grad_hidden, grad_weight, None, grad_bias, *[None] * 7


def _register() -> None:
    torch.library.register_autograd(
        "wavalign_fast::linear_logprob", _backward, setup_context=_setup_context
    )
    torch.library.register_autograd(
        "wavalign_fast::linear_logprob_backward",
        refuse_second_derivative,
        setup_context=no_context,
    )

    @torch.library.register_fake("wavalign_fast::linear_logprob")
    def _(  # type: ignore[no-untyped-def]
        hidden,
        weight,
        targets,
        bias,
        temperature,
        ignore_index,
        store_bytes,
        skip_tolerance,
        want_prob_buffer,
        softcap=None,
        bias_inside=False,
    ):
        per_row = hidden.new_empty(targets.shape, dtype=torch.float32)
        store = hidden.new_empty([store_bytes], dtype=torch.uint8)
        tiles = (weight.shape[0] + TILE_ROWS - 1) // TILE_ROWS
        table = [tiles, targets.shape[0]] if skip_tolerance > 0 else [0]
        skipped = hidden.new_empty(table, dtype=torch.uint8)
        norm = hidden.new_empty([2, targets.shape[0]], dtype=torch.float32)
        values = (per_row, torch.empty_like(per_row), torch.empty_like(per_row))
        prob_buffer = torch.empty_like(weight) if want_prob_buffer else weight.new_empty(0)
        return *values, norm, store, skipped, prob_buffer

    @torch.library.register_fake("wavalign_fast::linear_logprob_backward")
    def _(a, b, c, hidden, weight, targets, bias, *rest):  # type: ignore[no-untyped-def]
        return _fake((hidden, weight, bias), *rest[8:])

    @torch.library.register_fake("wavalign_fast::linear_logprob_backward_")
    def _(a, b, c, hidden, weight, targets, bias, *rest):  # type: ignore[no-untyped-def]
        return _fake((hidden, bias), *rest[8:])

    def _fake(operands, *flags):  # type: ignore[no-untyped-def]
        """Gradients of the operands; after which are needed comes ``wide_hidden``."""
        count = len(operands)
        hidden, *others = fake_gradients(operands, flags[:count])
        return hidden.float() if any(flags[count : count + 1]) else hidden, *others


if not isinstance(EXTENSION, str):
    _register()
