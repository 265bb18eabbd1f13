"""What the public functions do on a GPU backend: rows picked, a plan made, results put back."""

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from wavalign_fast.ops import chunked_library, live_rows
from wavalign_fast.ops.calls import wants_grad
from wavalign_fast.ops.library import backend_status
from wavalign_fast.ops.options import LossOptions
from wavalign_fast.ops.row_kernels import TokenTable, may_have_gradient, statistics_dtype

DEFAULT_MEMORY_BUDGET = 2 * 2**30
"""Bytes of logits at once: with fewer rows to a chunk the head's gradient, which is as large, is
read and written more often, with more nothing is gained."""

Attach = Callable[[Tensor], Tensor]


def linear_logprob(
    rows: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    temperature: float,
    ignore_index: int,
    options: LossOptions,
    backend: str,
    moving: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """``(logp, entropy, lse)`` of rows [T, H], each [T], from checked operands.

    ``targets`` may be on the CPU, and ``moving``, the rows whose log-prob's gradient is used: see
    ``live_rows.live_rows``.
    """
    picked = _Picked(rows, targets, ignore_index, backend, options, moving)
    scoring = (bias, temperature, ignore_index)
    if not options.deterministic and not wants_grad(rows, weight, bias) and _triton_works(backend):
        scores = _without_logits(picked, weight, *scoring)
    else:
        *scores, _ = chunked_library.chunked_logprob(
            *(picked.hidden, weight, picked.targets, *scoring),
            *(*_plan(options, backend), picked.live.moving),
        )
    logp, entropy, lse = (picked.put_back(values) for values in scores)
    return logp, entropy, lse


def hybrid_step(
    rows: Tensor,
    weight: Tensor,
    targets: Tensor,
    table: TokenTable,
    *,
    bias: Tensor | None,
    clip: tuple[float, float] | None,
    ignore_index: int,
    options: LossOptions,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Attach]:
    """``(logp, entropy, lse)``, each [T], and what attaches the step's gradients to its loss.

    ``targets`` and ``table`` may be on the CPU: see ``live_rows.live_rows``.
    """
    moving = may_have_gradient(table)
    picked = _Picked(rows, targets, ignore_index, backend, options, moving)
    columns = [None if column is None else picked.take(column) for column in table]
    operands = (picked.hidden, weight, bias)
    needs = [wants_grad(operand) for operand in operands]
    *scores, grad_hidden, grad_weight, grad_bias = chunked_library.hybrid_step(
        *(picked.hidden.detach(), weight.detach(), picked.targets),
        *(None if bias is None else bias.detach(), *columns),
        *(None if clip is None else list(clip), ignore_index),
        *(*_plan(options, backend), picked.live.moving, needs),
    )
    gradients = (grad_hidden, grad_weight, grad_bias)

    def attach(loss: Tensor) -> Tensor:
        wanted = [t for t, need in zip(operands, needs, strict=True) if need]
        found = [g for g, need in zip(gradients, needs, strict=True) if need]
        return chunked_library.with_gradients(loss.detach(), wanted, found, backend)

    logp, entropy, lse = (picked.put_back(values) for values in scores)
    return logp, entropy, lse, attach


class _Picked:
    """The rows of a call that carry loss, on the device of the hidden states."""

    def __init__(
        self,
        rows: Tensor,
        targets: Tensor,
        ignore_index: int,
        backend: str,
        options: LossOptions,
        moving: Tensor | None,
    ) -> None:
        live_rows.refuse_in_capture(rows.device, targets=targets)
        self.total = len(rows)
        self.live = live_rows.live_rows(
            *(targets, ignore_index, rows.device, backend),
            capacity=options.live_rows,
            moving=moving,
        )
        self.hidden = live_rows.take_rows(rows, self.live.index, backend)
        self.targets = self._at_rows(targets, ignore_index)

    def take(self, column: Tensor) -> Tensor:
        return self._at_rows(column, 0.0).to(statistics_dtype(self.hidden.dtype))

    def _at_rows(self, table: Tensor, missing: float) -> Tensor:
        """The table's entries [N] on the device; picked before they are sent, if they are."""
        if self.live.host is not None and table.device.type == "cpu":
            values = live_rows.at_rows(table, self.live.host, missing)
            return live_rows.sent(values, self.hidden.device)
        table = live_rows.sent(table, self.hidden.device)
        return live_rows.at_rows(table, self.live.index, missing)

    def put_back(self, values: Tensor) -> Tensor:
        """[T] from [N]; NaN where the capacity did not hold all rows, for some are missing."""
        table = live_rows.in_place(values, self.live.index, self.total)
        if self.live.count is None:
            return table
        return torch.where(self.live.count > len(self.live.index), torch.nan, table)


def _plan(options: LossOptions, backend: str) -> tuple[str, int, bool]:
    budget = options.memory_budget
    return backend, DEFAULT_MEMORY_BUDGET if budget is None else budget, options.deterministic


def _triton_works(backend: str) -> bool:
    return backend == "triton" or backend_status()["triton"] is None


def _without_logits(
    picked: _Picked, weight: Tensor, bias: Tensor | None, temperature: float, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor]:
    triton: Any = importlib.import_module("wavalign_fast.ops.triton")
    stats = triton.score(
        *(picked.hidden, weight, picked.targets, None if bias is None else bias.float()),
        scale=1.0 / temperature,
        ignore_index=ignore_index,
    )
    return stats.logp, stats.entropy, stats.top + stats.log_sum
