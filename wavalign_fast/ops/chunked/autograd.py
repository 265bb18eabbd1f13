"""The chunk loop as torch.library ops: opaque to a tracer, with fake kernels and derivatives.

The schema of an op is flat. On the Python side arguments that belong together are named tuples,
whose fields follow one another in the schema: a caller unpacks them, and ``_grouped`` puts them
together again.
"""

from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from wavalign_fast.ops.chunked import kernels, loop
from wavalign_fast.ops.chunked.chunks import ChunkOptions, Head, Needs
from wavalign_fast.ops.chunked.interface import RowGrads, RowStats
from wavalign_fast.ops.custom_ops import (
    NO_SECOND_DERIVATIVE,
    fake_gradients,
    no_context,
    refuse_second_derivative,
)
from wavalign_fast.ops.dtypes import statistics_dtype
from wavalign_fast.ops.token_math import TokenTable

HEAD = (
    "Tensor hidden, Tensor weight, Tensor targets, Tensor? bias, float temperature, "
    "SymInt ignore_index, float? softcap, bool bias_inside"
)
GRADS = "Tensor? grad_logp, Tensor? grad_entropy, Tensor? grad_lse"
TABLE = (
    "Tensor policy_coef, Tensor advantage, Tensor kl_coef, Tensor anchor_coef, Tensor? old_logp, "
    "Tensor? ref_logp"
)
OPTIONS = "str backend, SymInt memory_budget, bool same_bits, SymInt grad_rows"
NEEDS = "bool need_hidden, bool need_weight, bool need_bias"


def chunked_logprob(head: Head, options: ChunkOptions) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-probs, entropies, lse, and lse above the largest logit, each [N], of compacted rows.

    Differentiable once. Only the first ``options.grad_rows`` rows get a gradient; that of the
    others is taken to be 0.
    """
    logp, entropy, lse, norm = chunked_logprob_op(*head, *options)
    return logp, entropy, lse, norm[1]


def chunked_hybrid_step(
    head: Head,
    table: TokenTable,
    clip: tuple[float, float] | None,
    needs: Needs,
    options: ChunkOptions,
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    """Log-probs, entropies and lse [N], and the hybrid loss's gradients to the three operands.

    Not differentiable: ``with_gradients`` attaches the gradients to the loss. Those that are not
    needed are empty. Those of float16 operands are in fp32: the loss's own factor, as of a gradient
    scaler, may be what brings them into range.

    Args:
        clip: bounds of the ratio.
    """
    bounds = None if clip is None else list(clip)
    logp, entropy, lse, *grads = chunked_hybrid_step_op(*head, *table, bounds, *options, *needs)
    hidden, weight, bias = grads
    return (logp, entropy, lse), (hidden, weight, bias)


@torch.library.custom_op(
    "wavalign_fast::chunked_logprob",
    mutates_args=(),
    schema=f"({HEAD}, {OPTIONS}) -> (Tensor, Tensor, Tensor, Tensor)",
)
def chunked_logprob_op(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``chunked_logprob``, and norm [2, N]: lse in two parts."""
    stats = loop.chunked_row_stats(*_grouped(arguments, Head, ChunkOptions))
    norm = torch.stack([stats.top, stats.log_sum])
    return stats.logp, stats.entropy, norm.sum(0), norm


@torch.library.custom_op(
    "wavalign_fast::chunked_logprob_backward",
    mutates_args=(),
    schema=f"({GRADS}, Tensor logp, Tensor entropy, Tensor norm, {HEAD}, {OPTIONS}, {NEEDS}) -> "
    "(Tensor, Tensor, Tensor)",
)
def chunked_logprob_backward_op(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to hidden, weight and bias; those that are not needed are empty."""
    logp, entropy, norm = arguments[3:6]
    given = (None if g is None else g.to(logp.dtype).contiguous() for g in arguments[:3])
    head, options, needs = _grouped(arguments[6:], Head, ChunkOptions, Needs)
    stats = RowStats(logp, entropy, norm[0], norm[1])
    found = loop.chunked_row_gradients(head, stats, RowGrads(*given), needs, options)
    return _present(head.hidden, found)


@torch.library.custom_op(
    "wavalign_fast::chunked_hybrid_step",
    mutates_args=(),
    schema=f"({HEAD}, {TABLE}, float[]? clip, {OPTIONS}, {NEEDS}) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def chunked_hybrid_step_op(
    *arguments: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``chunked_hybrid_step``."""
    before = len(Head._fields) + len(TokenTable._fields)
    head, table = _grouped(arguments, Head, TokenTable)
    clip = arguments[before]
    options, needs = _grouped(arguments[before + 1 :], ChunkOptions, Needs)
    bounds = None if clip is None else (clip[0], clip[1])
    stats, grads = loop.chunked_hybrid_rows(head, table, bounds, needs, options)
    lse = stats.top + stats.log_sum
    return stats.logp, stats.entropy, lse, *_present(head.hidden, grads)


@torch.library.custom_op("wavalign_fast::with_gradients", mutates_args=())
def with_gradients(
    value: Tensor, operands: list[Tensor], gradients: list[Tensor], backend: str
) -> Tensor:
    """``value``, 0-d, with these derivatives by the operands.

    The backward pass scales the gradients in place, since a second copy of a head's gradient would
    be gigabytes. So only one backward pass is possible; a second one raises.
    """
    return value.clone()


@torch.library.custom_op("wavalign_fast::scale_gradients_", mutates_args=("gradients",))
def scale_gradients_(gradients: list[Tensor], factor: Tensor, backend: str) -> None:
    """Multiplies each gradient in place by a 0-d factor."""
    for gradient in gradients:
        kernels.row_kernels_of(backend).scale_(gradient, factor)


def _grouped(arguments: Iterable[Any], *kinds: Any) -> tuple[Any, ...]:
    """The first of an op's arguments as named tuples of these kinds."""
    rest = iter(arguments)
    return tuple(kind._make(islice(rest, len(kind._fields))) for kind in kinds)


def _present(like: Tensor, grads: tuple[Tensor | None, ...]) -> tuple[Tensor, Tensor, Tensor]:
    # An op returns tensors, needed or not.
    hidden, weight, bias = (like.new_empty(0) if grad is None else grad for grad in grads)
    return hidden, weight, bias


def _per_row(hidden: Tensor, count: int) -> tuple[Tensor, ...]:
    dtype = statistics_dtype(hidden.dtype)
    return tuple(hidden.new_empty(hidden.shape[0], dtype=dtype) for _ in range(count))


@chunked_logprob_op.register_fake
def _(hidden, *rest):  # type: ignore[no-untyped-def]
    values = _per_row(hidden, 3)
    return *values, values[0].new_empty((2, hidden.shape[0]))


@chunked_logprob_backward_op.register_fake
def _(*arguments):  # type: ignore[no-untyped-def]
    head, _, needs = _grouped(arguments[6:], Head, ChunkOptions, Needs)
    return fake_gradients((head.hidden, head.weight, head.bias), needs)


@chunked_hybrid_step_op.register_fake
def _(hidden, weight, targets, bias, *rest):  # type: ignore[no-untyped-def]
    gradients = fake_gradients((hidden, weight, bias), rest[-len(Needs._fields) :])
    if weight.dtype == torch.float16:
        gradients = tuple(g.to(torch.float32) if g.numel() else g for g in gradients)
    return *_per_row(hidden, 3), *gradients


@with_gradients.register_fake
def _(value, operands, gradients, backend):  # type: ignore[no-untyped-def]
    return torch.empty_like(value)


def _logprob_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    head, ctx.options = _grouped(inputs, Head, ChunkOptions)
    logp, entropy, _, norm = output
    ctx.mark_non_differentiable(norm)
    ctx.save_for_backward(head.hidden, head.weight, head.targets, head.bias, logp, entropy, norm)
    ctx.numbers = head[4:]


def _logprob_backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    hidden, weight, targets, bias, logp, entropy, norm = ctx.saved_tensors
    head = Head(hidden, weight, targets, bias, *ctx.numbers)
    needs = Needs(*(ctx.needs_input_grad[i] for i in (0, 1, 3)))
    found = chunked_logprob_backward_op(
        *grads[:3], logp, entropy, norm, *head, *ctx.options, *needs
    )
    given = (g if need else None for g, need in zip(found, needs, strict=True))
    grad_hidden, grad_weight, grad_bias = given
    others = len(ctx.needs_input_grad) - 4
    return grad_hidden, grad_weight, None, grad_bias, *[None] * others


def _value_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[2])
    ctx.dtypes = [operand.dtype for operand in inputs[1]]
    ctx.backend, ctx.spent = inputs[3], False


def _value_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    if grad.requires_grad:
        raise RuntimeError(NO_SECOND_DERIVATIVE)
    # Torch counts the changes of a saved tensor, but not where hooks bring it back.
    if ctx.spent:
        raise RuntimeError(
            "a second backward pass through one hybrid step: its gradients went to the first; "
            "compute the loss again"
        )
    ctx.spent = True
    gradients = list(ctx.saved_tensors)
    scale_gradients_(gradients, grad, ctx.backend)
    rounded = [g.to(dtype) for g, dtype in zip(gradients, ctx.dtypes, strict=True)]
    return None, rounded, [None] * len(gradients), None


chunked_logprob_op.register_autograd(_logprob_backward, setup_context=_logprob_context)
with_gradients.register_autograd(_value_backward, setup_context=_value_context)
for _op in (chunked_logprob_backward_op, chunked_hybrid_step_op):
    _op.register_autograd(refuse_second_derivative, setup_context=no_context)
