"""The public functions on a GPU backend: the chunk loop over the live rows of a call."""

import importlib
from collections.abc import Callable
from typing import Any

from torch import Tensor

from wavalign_fast.ops.backends import status_of
from wavalign_fast.ops.chunked import autograd, compaction
from wavalign_fast.ops.chunked.compaction import LiveRows
from wavalign_fast.ops.operands import Operands, wants_grad

DEFAULT_MEMORY_BUDGET = 2 * 2**30
"""Bytes of logits at once: with fewer rows to a chunk the head's gradient, which is as large, is
read and written more often, with more nothing is gained."""

Attach = Callable[[Tensor], Tensor]


def gpu_logprob(
    operands: Operands, live: LiveRows, temperature: float, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor]:
    """``(logp, entropy, lse)`` of the rows of ``operands``, each [T].

    ``live`` is of the same call, on the device of its rows.
    """
    hidden = compaction.gather_live_rows(operands.rows, live.index, operands.backend)
    given = (
        hidden,
        operands.weight,
        live.targets,
        operands.bias,
        temperature,
        ignore_index,
    )
    learning = wants_grad(operands.rows, operands.weight, operands.bias)
    if not operands.options.deterministic and not learning and _triton_works(operands.backend):
        scores = _without_logits(*given)
    else:
        *scores, _ = autograd.chunked_logprob(*given, *_chunk_options(operands), live.grad_rows)
    logp, entropy, lse = live.scatter(scores)
    return logp, entropy, lse


def gpu_hybrid_step(
    operands: Operands, live: LiveRows, *, clip: tuple[float, float] | None, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor, Attach]:
    """``(logp, entropy, lse)``, each [T], and what attaches the step's gradients to its loss.

    ``live`` is of the same call, with a table, on the device of its rows.
    """
    assert live.table is not None
    hidden = compaction.gather_live_rows(operands.rows, live.index, operands.backend)
    leaves = (hidden, operands.weight, operands.bias)
    needs = [wants_grad(leaf) for leaf in leaves]
    fixed = [None if leaf is None else leaf.detach() for leaf in leaves]
    *scores, grad_hidden, grad_weight, grad_bias = autograd.chunked_hybrid_step(
        *(*fixed[:2], live.targets, fixed[2], *live.table),
        *(None if clip is None else list(clip), ignore_index),
        *(*_chunk_options(operands), live.grad_rows, needs),
    )
    gradients = (grad_hidden, grad_weight, grad_bias)

    def attach(loss: Tensor) -> Tensor:
        wanted = [t for t, need in zip(leaves, needs, strict=True) if need]
        found = [g for g, need in zip(gradients, needs, strict=True) if need]
        return autograd.with_gradients(loss.detach(), wanted, found, operands.backend)

    logp, entropy, lse = live.scatter(scores)
    return logp, entropy, lse, attach


def _chunk_options(operands: Operands) -> tuple[str, int, bool]:
    budget = operands.options.memory_budget
    budget = DEFAULT_MEMORY_BUDGET if budget is None else budget
    return operands.backend, budget, operands.options.deterministic


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
