"""What the public functions do on a GPU backend: rows picked, a plan made, results put back."""

import importlib
from collections.abc import Callable
from typing import Any

from torch import Tensor

from wavalign_fast.ops.backends import status_of
from wavalign_fast.ops.chunked import autograd, compaction
from wavalign_fast.ops.chunked.live_rows import Picked
from wavalign_fast.ops.operands import Call, wants_grad

DEFAULT_MEMORY_BUDGET = 2 * 2**30
"""Bytes of logits at once: with fewer rows to a chunk the head's gradient, which is as large, is
read and written more often, with more nothing is gained."""

Attach = Callable[[Tensor], Tensor]


def linear_logprob(
    call: Call, picked: Picked, temperature: float, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor]:
    """``(logp, entropy, lse)`` of the rows of ``call``, each [T].

    ``picked`` is of the same call, on the device of its rows.
    """
    hidden = compaction.take_rows(call.rows, picked.index, call.backend)
    operands = (hidden, call.weight, picked.targets, call.bias, temperature, ignore_index)
    learning = wants_grad(call.rows, call.weight, call.bias)
    if not call.options.deterministic and not learning and _triton_works(call.backend):
        scores = _without_logits(*operands)
    else:
        *scores, _ = autograd.chunked_logprob(*operands, *_plan(call), picked.moving)
    logp, entropy, lse = picked.put_back(scores)
    return logp, entropy, lse


def hybrid_step(
    call: Call, picked: Picked, *, clip: tuple[float, float] | None, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor, Attach]:
    """``(logp, entropy, lse)``, each [T], and what attaches the step's gradients to its loss.

    ``picked`` is of the same call, with a table, on the device of its rows.
    """
    assert picked.table is not None
    hidden = compaction.take_rows(call.rows, picked.index, call.backend)
    operands = (hidden, call.weight, call.bias)
    needs = [wants_grad(operand) for operand in operands]
    fixed = [None if operand is None else operand.detach() for operand in operands]
    *scores, grad_hidden, grad_weight, grad_bias = autograd.hybrid_step(
        *(*fixed[:2], picked.targets, fixed[2], *picked.table),
        *(None if clip is None else list(clip), ignore_index),
        *(*_plan(call), picked.moving, needs),
    )
    gradients = (grad_hidden, grad_weight, grad_bias)

    def attach(loss: Tensor) -> Tensor:
        wanted = [t for t, need in zip(operands, needs, strict=True) if need]
        found = [g for g, need in zip(gradients, needs, strict=True) if need]
        return autograd.with_gradients(loss.detach(), wanted, found, call.backend)

    logp, entropy, lse = picked.put_back(scores)
    return logp, entropy, lse, attach


def _plan(call: Call) -> tuple[str, int, bool]:
    budget = call.options.memory_budget
    budget = DEFAULT_MEMORY_BUDGET if budget is None else budget
    return call.backend, budget, call.options.deterministic


def _triton_works(backend: str) -> bool:
    return backend == "triton" or status_of("triton") is None


def _without_logits(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    temperature: float,
    ignore_index: int,
) -> list[Tensor]:
    triton: Any = importlib.import_module("wavalign_fast.ops.triton")
    stats = triton.score(
        *(hidden, weight, targets, None if bias is None else bias.float()),
        scale=1.0 / temperature,
        ignore_index=ignore_index,
    )
    return [stats.logp, stats.entropy, stats.top + stats.log_sum]
