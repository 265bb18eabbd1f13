"""The chunk loop as torch.library ops: opaque to a tracer, with fake kernels and derivatives."""

from typing import Any

import torch
from torch import Tensor

from wavalign_fast.ops.chunked import kernels, loop
from wavalign_fast.ops.chunked.chunks import ChunkOptions, Head, Needs
from wavalign_fast.ops.chunked.interface import RowGrads, RowStats
from wavalign_fast.ops.custom_ops import NO_SECOND_DERIVATIVE, fake_gradients
from wavalign_fast.ops.dtypes import statistics_dtype
from wavalign_fast.ops.token_math import TokenTable


@torch.library.custom_op("wavalign_fast::chunked_logprob", mutates_args=())
def chunked_logprob(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    temperature: float,
    ignore_index: int,
    backend: str,
    memory_budget: int,
    same_bits: bool,
    grad_rows: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-probs, entropies and lse [N] of compacted rows, and norm [2, N]: lse in two parts.

    The first ``grad_rows`` rows may have a gradient; of the others it is taken to be 0.
    """
    head = Head(hidden, weight, targets, bias, temperature, ignore_index)
    stats = loop.chunked_row_stats(head, ChunkOptions(backend, memory_budget, same_bits, grad_rows))
    norm = torch.stack([stats.top, stats.log_sum])
    return stats.logp, stats.entropy, norm.sum(0), norm


@torch.library.custom_op("wavalign_fast::chunked_logprob_backward", mutates_args=())
def chunked_logprob_backward(
    grad_logp: Tensor | None,
    grad_entropy: Tensor | None,
    grad_lse: Tensor | None,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    logp: Tensor,
    entropy: Tensor,
    norm: Tensor,
    temperature: float,
    ignore_index: int,
    backend: str,
    memory_budget: int,
    same_bits: bool,
    grad_rows: int,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to hidden, weight and bias; the ones not needed are empty."""
    head = Head(hidden, weight, targets, bias, temperature, ignore_index)
    given = (grad_logp, grad_entropy, grad_lse)
    grads = RowGrads(*(None if g is None else g.to(logp.dtype).contiguous() for g in given))
    stats = RowStats(logp, entropy, norm[0], norm[1])
    options = ChunkOptions(backend, memory_budget, same_bits, grad_rows)
    return _present(hidden, loop.chunked_row_gradients(head, stats, grads, Needs(*needs), options))


@torch.library.custom_op("wavalign_fast::chunked_hybrid_step", mutates_args=())
def chunked_hybrid_step(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    policy_coef: Tensor,
    advantage: Tensor,
    kl_coef: Tensor,
    anchor_coef: Tensor,
    old_logp: Tensor | None,
    ref_logp: Tensor | None,
    clip: list[float] | None,
    ignore_index: int,
    backend: str,
    memory_budget: int,
    same_bits: bool,
    grad_rows: int,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Log-probs, entropies and lse [N], and the hybrid loss's gradients to the three operands.

    Not differentiable: ``with_gradients`` attaches the gradients to the loss. Those of float16
    operands are in fp32: the loss's own factor, as of a gradient scaler, may be what brings them
    into range. ``clip`` holds the bounds of the ratio.
    """
    head = Head(hidden, weight, targets, bias, 1.0, ignore_index)
    table = TokenTable(policy_coef, advantage, kl_coef, anchor_coef, old_logp, ref_logp)
    bounds = None if clip is None else (clip[0], clip[1])
    options = ChunkOptions(backend, memory_budget, same_bits, grad_rows)
    stats, grads = loop.chunked_hybrid_rows(head, table, bounds, Needs(*needs), options)
    lse = stats.top + stats.log_sum
    return stats.logp, stats.entropy, lse, *_present(hidden, grads)


@torch.library.custom_op("wavalign_fast::with_gradients", mutates_args=())
def with_gradients(
    value: Tensor, operands: list[Tensor], gradients: list[Tensor], backend: str
) -> Tensor:
    """``value``, 0-d, with these derivatives by the operands.

    The backward pass scales the gradients where they lie, for a second copy of a head's would be
    gigabytes. So there is one backward pass, and a second raises.
    """
    return value.clone()


@torch.library.custom_op("wavalign_fast::scale_gradients_", mutates_args=("gradients",))
def scale_gradients_(gradients: list[Tensor], factor: Tensor, backend: str) -> None:
    """Multiplies each gradient by a 0-d factor where it lies."""
    for gradient in gradients:
        kernels.row_kernels_of(backend).scale_(gradient, factor)


def _present(like: Tensor, grads: tuple[Tensor | None, ...]) -> tuple[Tensor, Tensor, Tensor]:
    # An op returns tensors, needed or not.
    hidden, weight, bias = (like.new_empty(0) if grad is None else grad for grad in grads)
    return hidden, weight, bias


def _per_row(hidden: Tensor, count: int) -> tuple[Tensor, ...]:
    dtype = statistics_dtype(hidden.dtype)
    return tuple(hidden.new_empty(hidden.shape[0], dtype=dtype) for _ in range(count))


@chunked_logprob.register_fake
def _(hidden, weight, targets, *rest):  # type: ignore[no-untyped-def]
    values = _per_row(hidden, 3)
    return *values, values[0].new_empty((2, hidden.shape[0]))


@chunked_logprob_backward.register_fake
def _(a, b, c, hidden, weight, targets, bias, *rest):  # type: ignore[no-untyped-def]
    return fake_gradients((hidden, weight, bias), rest[-1])


@chunked_hybrid_step.register_fake
def _(hidden, weight, targets, bias, *rest):  # type: ignore[no-untyped-def]
    gradients = fake_gradients((hidden, weight, bias), rest[-1])
    if weight.dtype == torch.float16:
        gradients = tuple(g.to(torch.float32) if g.numel() else g for g in gradients)
    return *_per_row(hidden, 3), *gradients


@with_gradients.register_fake
def _(value, operands, gradients, backend):  # type: ignore[no-untyped-def]
    return torch.empty_like(value)


def _logprob_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    logp, entropy, _, norm = output
    ctx.mark_non_differentiable(norm)
    ctx.save_for_backward(*inputs[:4], logp, entropy, norm)
    ctx.settings = inputs[4:]


def _logprob_backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    grad_logp, grad_entropy, grad_lse, _ = grads
    needs = [ctx.needs_input_grad[i] for i in (0, 1, 3)]
    found = chunked_logprob_backward(
        *(grad_logp, grad_entropy, grad_lse, *ctx.saved_tensors), *ctx.settings, needs
    )
    hidden, weight, bias = (g if need else None for g, need in zip(found, needs, strict=True))
    return hidden, weight, None, bias, *[None] * len(ctx.settings)


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


def _refuse(ctx: Any, *grads: Any) -> None:
    raise RuntimeError(NO_SECOND_DERIVATIVE)


def _no_context(ctx: Any, inputs: Any, output: Any) -> None:
    pass


chunked_logprob.register_autograd(_logprob_backward, setup_context=_logprob_context)
with_gradients.register_autograd(_value_backward, setup_context=_value_context)
for _op in (chunked_logprob_backward, chunked_hybrid_step):
    _op.register_autograd(_refuse, setup_context=_no_context)
