"""The C++ kernels as torch.library ops: fake kernels, derivatives, and the call itself."""

from collections.abc import Callable
from typing import Any

import torch

from wavalign_fast.ops.custom_ops import fake_gradients, no_context, refuse_second_derivative
from wavalign_fast.ops.extension import EXTENSION
from wavalign_fast.ops.operands import Operands, wants_grad
from wavalign_fast.ops.token_math import TokenTable, token_gradient

DEFAULT_MEMORY_BUDGET = 512 * 2**20
TILE_ROWS = 256
LANE_ALIGN = 16


def cpu_logprob(
    operands: Operands, temperature: float, ignore_index: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``(logp, entropy, lse)`` of the rows of ``operands``, each [T]."""
    _, options, rows, weight, targets, bias = operands
    budget = options.memory_budget
    learning = wants_grad(rows, weight, bias)
    want_prob_buffer = wants_grad(weight) and _saved_as_it_is()
    kept = DEFAULT_MEMORY_BUDGET if budget is None else budget
    store = _store_bytes(rows, weight, kept) if learning else 0
    tolerance = options.skip_tolerance if learning else 0.0
    logp, entropy, lse, *_ = torch.ops.wavalign_fast.linear_logprob(
        rows, weight, targets, bias, temperature, ignore_index, store, tolerance, want_prob_buffer
    )
    return logp, entropy, lse


def cpu_hybrid_step(
    operands: Operands,
    table: TokenTable,
    *,
    clip: tuple[float, float] | None,
    ignore_index: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
    """``(logp, entropy, lse)``, each [T], and what attaches the step's gradients to its loss.

    The probabilities that the forward pass keeps make this three products as well, so the
    gradients wait for the backward pass; only the token maths is done here.
    """
    logp, entropy, lse = cpu_logprob(operands, 1.0, ignore_index)
    wide = TokenTable._make(None if column is None else column.double() for column in table)
    g = token_gradient(logp.detach().double(), wide, clip)
    g = torch.where(operands.targets == ignore_index, 0.0, g).to(logp.dtype)

    def attach(loss: torch.Tensor) -> torch.Tensor:
        attached: torch.Tensor = _WithDerivative.apply(loss.detach(), logp, g)
        return attached

    return logp.detach(), entropy.detach(), lse.detach(), attach


class _WithDerivative(torch.autograd.Function):
    """A value with a given derivative by a vector."""

    @staticmethod
    def forward(
        ctx: Any, value: torch.Tensor, vector: torch.Tensor, derivative: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(derivative)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # A second derivative is refused by the op that this goes to. `once_differentiable` would
        # cut the way there from `grad`, and who asks along it would get zeros.
        (derivative,) = ctx.saved_tensors
        return None, grad.to(derivative.dtype) * derivative, None


def _saved_as_it_is() -> bool:
    """Whether the backward pass will most likely get the very tensors that this call saves.

    If not, a probability buffer would be held for nothing: activation checkpointing keeps no tensor
    of this call, and other hooks keep copies. (In a traced graph every result has a shape of its
    own, and a probability buffer may be refused.) The kernels check whether the buffer they are
    given is the right one.
    """
    hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return not torch.compiler.is_compiling() and (hooks is None or hooks(False) is None)


def _store_bytes(rows: torch.Tensor, weight: torch.Tensor, budget: int) -> int:
    """Bytes of probabilities to keep for the backward pass: all of them, or the budget.

    An upper bound from the shapes alone, so that it is known while tracing; the pages of rows that
    turn out to be ignored are never touched.
    """
    item = 2 if rows.dtype == torch.bfloat16 else 4
    lanes = (rows.shape[0] + LANE_ALIGN - 1) // LANE_ALIGN * LANE_ALIGN
    tiles = (weight.shape[0] + TILE_ROWS - 1) // TILE_ROWS
    return min(budget, 64 + tiles * lanes * (4 + TILE_ROWS * item))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    hidden, weight, targets, bias, temperature, ignore_index, *_ = inputs
    ctx.set_materialize_grads(False)
    logp, entropy, _, norm, store, skipped, prob_buffer = output
    ctx.mark_non_differentiable(norm, store, skipped, prob_buffer)
    ctx.save_for_backward(hidden, weight, targets, bias, logp, entropy, norm, store, skipped)
    ctx.temperature, ctx.ignore_index = temperature, ignore_index
    # Not a saved tensor, whose first change would forbid a second backward pass. The first one
    # takes it along; the next finds none, and makes the probabilities again. So does one to which
    # autograd hands the saved tensors of another forward pass: the store knows the id of
    # its probability buffer.
    ctx.prob_buffer = prob_buffer


def _backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    hidden, weight, targets, bias, *results = ctx.saved_tensors
    grad_logp, grad_entropy, grad_lse, *_ = grads
    need_hidden, need_weight, need_bias = (ctx.needs_input_grad[i] for i in (0, 1, 3))
    operands = (grad_logp, grad_entropy, grad_lse, hidden, weight, targets, bias)
    settings = (ctx.temperature, ctx.ignore_index, *results, ctx.prob_buffer)
    ops = torch.ops.wavalign_fast
    # A pass that is itself to be differentiated is refused by the op that changes nothing.
    if need_weight and ctx.prob_buffer.numel() > 0 and not torch.is_grad_enabled():
        # Nobody else may hold the gradient, or autograd copies it.
        grad_weight, ctx.prob_buffer = ctx.prob_buffer, ctx.prob_buffer.new_empty(0)
        grad_hidden, grad_bias = ops.linear_logprob_backward_(
            *operands, *settings, need_hidden, need_bias
        )
    else:
        grad_hidden, grad_weight, grad_bias = ops.linear_logprob_backward(
            *operands, *settings, need_hidden, need_weight, need_bias
        )
    return (
        grad_hidden if need_hidden else None,
        grad_weight if need_weight else None,
        None,
        grad_bias if need_bias else None,
        *[None] * 5,
    )


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
    def _(*args):  # type: ignore[no-untyped-def]
        hidden, weight, bias = args[3], args[4], args[6]
        return fake_gradients((hidden, weight, bias), args[-3:])

    @torch.library.register_fake("wavalign_fast::linear_logprob_backward_")
    def _(*args):  # type: ignore[no-untyped-def]
        hidden, bias = args[3], args[6]
        return fake_gradients((hidden, bias), args[-2:])


if not isinstance(EXTENSION, str):
    _register()
