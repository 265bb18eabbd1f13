"""Log-probabilities of chosen ids under a linear head, without the logits."""

from typing import Any, NamedTuple

import torch

from wavalign_fast.ops import reference
from wavalign_fast.ops.library import DEFAULT_MEMORY_BUDGET, EXTENSION, choose_backend
from wavalign_fast.ops.options import LossOptions

IGNORE_INDEX = -100
TILE_ROWS = 256
LANE_ALIGN = 16


class LogProb(NamedTuple):
    """Per-position results, each of the shape of ``targets``; ignored positions hold 0."""

    logp: torch.Tensor
    entropy: torch.Tensor | None
    lse: torch.Tensor


def linear_logprob(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    temperature: float = 1.0,
    ignore_index: int = IGNORE_INDEX,
    with_entropy: bool = False,
    options: LossOptions | None = None,
) -> LogProb:
    """``log softmax(hidden W^T / temperature + bias)[target]`` for every position.

    Differentiable once in ``hidden``, ``weight`` and ``bias``, through all three results. Rows
    whose target is ``ignore_index`` are not read: they hold 0 and give no gradient. A position's
    bits do not depend on the batch around it.

    Args:
        hidden: [..., H], float32, bfloat16 or float16 (``reference``: also float64).
        weight: [V, H], the dtype of ``hidden``.
        targets: [...] integers in [0, V) or ``ignore_index``.
        bias: [V], added after the temperature; ``-inf`` bans an id.
        temperature: divides the product; positive.
        with_entropy: also return the entropy in nats.

    Returns:
        float32 ``logp``, ``entropy`` (or ``None``) and ``lse`` in the shape of ``targets``; float64
        for float64 operands.

    Raises:
        ValueError: shapes, dtypes, ids or options that do not fit; the message has both values.
    """
    options = options or LossOptions()
    hidden, weight, bias = _under_autocast(hidden, weight, bias)
    _check(hidden, weight, targets, bias, temperature)
    backend = choose_backend(options, hidden)
    rows = hidden.reshape(-1, hidden.shape[-1]).contiguous()
    ids = targets.reshape(-1).to(torch.int64).contiguous()
    if backend == "reference":
        _check_ids_on_cpu(ids, weight.shape[0], ignore_index)
        logp, entropy, lse = reference.linear_logprob(
            rows, weight, ids, bias, temperature, ignore_index
        )
    else:
        budget = options.memory_budget
        wants_grad = torch.is_grad_enabled() and any(
            t is not None and t.requires_grad for t in (hidden, weight, bias)
        )
        store = _store_bytes(
            rows, weight, DEFAULT_MEMORY_BUDGET if budget is None else budget, wants_grad
        )
        tolerance = options.skip_tolerance if wants_grad else 0.0
        logp, entropy, lse, *_ = torch.ops.wavalign_fast.linear_logprob(
            rows, weight.contiguous(), ids, bias, temperature, ignore_index, store, tolerance
        )
    shape = targets.shape
    return LogProb(
        logp.reshape(shape), entropy.reshape(shape) if with_entropy else None, lse.reshape(shape)
    )


def _under_autocast(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Operands in autocast's type, as ``F.linear`` would take them."""
    device = hidden.device.type
    if not torch.is_autocast_enabled(device):
        return hidden, weight, bias
    dtype = torch.get_autocast_dtype(device)
    return hidden.to(dtype), weight.to(dtype), bias


def _check(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    temperature: float,
) -> None:
    if hasattr(weight, "placements"):
        raise ValueError("weight: got a DTensor, want a local tensor: call full_tensor() on it")
    if weight.dim() != 2 or weight.shape[0] == 0:
        raise ValueError(f"weight: got shape {tuple(weight.shape)}, want [V, H] with V > 0")
    if hidden.dim() == 0 or hidden.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"hidden: got shape {tuple(hidden.shape)}, want [..., {weight.shape[1]}] to match "
            f"weight {tuple(weight.shape)}"
        )
    if hidden.dtype != weight.dtype:
        raise ValueError(f"hidden is {hidden.dtype} but weight is {weight.dtype}, want one dtype")
    if not hidden.is_floating_point():
        raise ValueError(f"hidden: got {hidden.dtype}, want a floating dtype")
    if targets.shape != hidden.shape[:-1]:
        raise ValueError(
            f"targets: got shape {tuple(targets.shape)}, want {tuple(hidden.shape[:-1])}"
        )
    if targets.is_floating_point() or targets.dtype == torch.bool:
        raise ValueError(f"targets: got {targets.dtype}, want an integer dtype")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias: got shape {tuple(bias.shape)}, want [{weight.shape[0]}]")
    if not temperature > 0:
        raise ValueError(f"temperature: got {temperature}, want > 0")


def _check_ids_on_cpu(ids: torch.Tensor, vocab_size: int, ignore_index: int) -> None:
    """Elsewhere the check would wait for the device: a bad id poisons its own row with NaN."""
    if ids.device.type != "cpu":
        return
    bad = torch.nonzero((ids != ignore_index) & ((ids < 0) | (ids >= vocab_size)))
    if bad.numel() > 0:
        row = int(bad[0, 0])
        raise ValueError(
            f"targets[{row}] = {int(ids[row])} is outside [0, {vocab_size}) and is not "
            f"ignore_index {ignore_index}"
        )


def _store_bytes(rows: torch.Tensor, weight: torch.Tensor, budget: int, wants_grad: bool) -> int:
    """Bytes of probabilities to keep for the backward pass: all of them, or the budget.

    An upper bound from the shapes alone, so that it is known while tracing; the pages of rows that
    turn out to be ignored are never touched.
    """
    if not wants_grad:
        return 0
    item = 2 if rows.dtype == torch.bfloat16 else 4
    lanes = (rows.shape[0] + LANE_ALIGN - 1) // LANE_ALIGN * LANE_ALIGN
    tiles = (weight.shape[0] + TILE_ROWS - 1) // TILE_ROWS
    return min(budget, 64 + tiles * lanes * (4 + TILE_ROWS * item))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    hidden, weight, targets, bias, temperature, ignore_index, *_ = inputs
    ctx.set_materialize_grads(False)
    logp, entropy, _, norm, store, skipped = output
    ctx.save_for_backward(hidden, weight, targets, bias, logp, entropy, norm, store, skipped)
    ctx.temperature, ctx.ignore_index = temperature, ignore_index


def _backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    hidden, weight, targets, bias, *results = ctx.saved_tensors
    grad_logp, grad_entropy, grad_lse, *_ = grads
    needs = (ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[3])
    operand_grads = torch.ops.wavalign_fast.linear_logprob_backward(
        *(grad_logp, grad_entropy, grad_lse, hidden, weight, targets, bias),
        *(ctx.temperature, ctx.ignore_index, *results, *needs),
    )
    grad_hidden, grad_weight, grad_bias = (
        g if needed else None for g, needed in zip(operand_grads, needs, strict=True)
    )
    return grad_hidden, grad_weight, None, grad_bias, None, None, None, None


def _no_second_derivative(ctx: Any, *grads: torch.Tensor) -> None:
    raise RuntimeError(
        "linear_logprob has no second derivative on this backend; options=LossOptions("
        "backend='reference') has one"
    )


def _register() -> None:
    torch.library.register_autograd(
        "wavalign_fast::linear_logprob", _backward, setup_context=_setup_context
    )
    torch.library.register_autograd(
        "wavalign_fast::linear_logprob_backward",
        _no_second_derivative,
        setup_context=lambda ctx, inputs, output: None,
    )

    @torch.library.register_fake("wavalign_fast::linear_logprob")
    def _(hidden, weight, targets, bias, temperature, ignore_index, store_bytes, skip_tolerance):  # type: ignore[no-untyped-def]
        per_row = hidden.new_empty(targets.shape, dtype=torch.float32)
        store = hidden.new_empty([store_bytes], dtype=torch.uint8)
        tiles = (weight.shape[0] + TILE_ROWS - 1) // TILE_ROWS
        table = [tiles, targets.shape[0]] if skip_tolerance > 0 else [0]
        skipped = hidden.new_empty(table, dtype=torch.uint8)
        norm = hidden.new_empty([2, targets.shape[0]], dtype=torch.float32)
        values = (per_row, torch.empty_like(per_row), torch.empty_like(per_row))
        return *values, norm, store, skipped

    @torch.library.register_fake("wavalign_fast::linear_logprob_backward")
    def _(*args):  # type: ignore[no-untyped-def]
        hidden, weight, bias = args[3], args[4], args[6]
        operands = zip((hidden, weight, bias), args[-3:], strict=True)
        return tuple(torch.empty_like(t) if need else hidden.new_empty([0]) for t, need in operands)


if not isinstance(EXTENSION, str):
    _register()
