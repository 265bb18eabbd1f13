"""The loop over chunks of rows that serves every GPU backend.

The rows that carry loss come compacted. A chunk of them at a time: logits from a product with fp32
results, a row kernel, then the products of the gradients. A backend brings the kernels only;
``row_kernels`` itself, the definition, is one too, so that all of this runs in float64.

Logits are made ``PRODUCT_ROWS`` rows to a product, whatever the chunk: a library chooses its kernel
by the shape, so this is what keeps a row's bits apart from the batch, the chunk and the budget.
"""

import importlib
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import torch

from wavalign_fast.ops.row_kernels import RowGrads, RowStats, TokenTable, statistics_dtype

PRODUCT_ROWS = 256
"""Rows of one product of logits: enough flops a byte of the head that a GPU computes, not waits."""
PITCH_ALIGN = 64
MODULES = {
    "cuda": "wavalign_fast.ops.cuda",
    "triton": "wavalign_fast.ops.triton",
    "definition": "wavalign_fast.ops.row_kernels",
}
"""Where each backend's row kernels are; imported on first use."""


class RowKernels(Protocol):
    """The functions of a backend, which all return without waiting for the device;
    ``ops.row_kernels`` says what they compute."""

    def row_stats(self, *operands: Any, **settings: Any) -> RowStats: ...

    def row_gradient_(self, *operands: Any, **settings: Any) -> torch.Tensor: ...

    def hybrid_rows_(
        self, *operands: Any, **settings: Any
    ) -> tuple[RowStats, torch.Tensor, torch.Tensor]: ...

    def compact_rows(
        self, live: torch.Tensor, *, capacity: int
    ) -> tuple[torch.Tensor, torch.Tensor]: ...

    def gather_rows(self, source: torch.Tensor, index: torch.Tensor) -> torch.Tensor: ...

    def scatter_rows_(
        self, rows: torch.Tensor, index: torch.Tensor, target: torch.Tensor
    ) -> torch.Tensor: ...

    def scale_(self, gradient: torch.Tensor, factor: torch.Tensor) -> torch.Tensor: ...


class Head(NamedTuple):
    """The operands of a call: rows [N, H], head [V, H], and how their product becomes z."""

    hidden: torch.Tensor
    weight: torch.Tensor
    targets: torch.Tensor
    bias: torch.Tensor | None
    temperature: float
    ignore_index: int

    @property
    def settings(self) -> dict[str, Any]:
        return {"scale": 1.0 / self.temperature, "ignore_index": self.ignore_index}


class Needs(NamedTuple):
    """Which gradients are wanted."""

    hidden: bool
    weight: bool
    bias: bool


class Plan(NamedTuple):
    """How a call is computed."""

    backend: str
    memory_budget: int
    """Bytes of logits that may exist at once; one product's worth of rows always may."""
    same_bits: bool
    """Whether a row's bits may not depend on the rows beside it."""
    moving: int
    """How many rows may have a gradient, all of those the first: no other is multiplied for it."""


def row_kernels_of(backend: str) -> RowKernels:
    """The backend's row kernels."""
    kernels: Any = importlib.import_module(MODULES[backend])
    return kernels


def row_stats(head: Head, plan: Plan) -> RowStats:
    """Statistics of every row, each [N]; no gradient, no logits beyond a chunk."""
    kernels, found = row_kernels_of(plan.backend), _empty_stats(head)
    bias = _kernel_bias(head)
    for rows, logits in _chunks(head, plan):
        part = kernels.row_stats(logits, head.targets[rows], bias, **head.settings)
        _store(found, part, rows)
    return found


def row_gradients(
    head: Head, stats: RowStats, grads: RowGrads, needs: Needs, plan: Plan
) -> tuple[torch.Tensor | None, ...]:
    """Gradients to hidden, weight and bias, from logits made again."""
    kernels, sums = row_kernels_of(plan.backend), _Gradients(head, needs, plan)
    bias = _kernel_bias(head)
    for rows, logits in _chunks(head._replace(hidden=head.hidden[: plan.moving]), plan):
        dlogits = kernels.row_gradient_(
            *(logits, head.targets[rows], bias),
            RowStats(*(value[rows] for value in stats)),
            RowGrads(*(None if grad is None else grad[rows] for grad in grads)),
            out_dtype=head.weight.dtype,
            **head.settings,
        )
        sums.add(rows, dlogits)
    return sums.finish()


def hybrid_step(
    head: Head, table: TokenTable, clip: tuple[float, float] | None, needs: Needs, plan: Plan
) -> tuple[RowStats, torch.Tensor, tuple[torch.Tensor | None, ...]]:
    """Statistics, ``g = dL/dlogp`` [N] and the gradients of the hybrid loss: three products."""
    kernels, sums = row_kernels_of(plan.backend), _Gradients(head, needs, plan)
    found, bias = _empty_stats(head), _kernel_bias(head)
    g = torch.empty_like(found.logp)
    for rows, logits in _chunks(head, plan):
        part, g[rows], dlogits = kernels.hybrid_rows_(
            *(logits, head.targets[rows], bias),
            TokenTable._make(None if column is None else column[rows] for column in table),
            clip=clip,
            out_dtype=head.weight.dtype,
            **head.settings,
        )
        _store(found, part, rows)
        sums.add(rows, dlogits)
    return found, g, sums.finish()


class _Gradients:
    """dH, dW and the bias's gradient over the chunks of a call."""

    def __init__(self, head: Head, needs: Needs, plan: Plan) -> None:
        self.head, self.needs = head, needs
        self.moving = plan.moving
        self.single = plan.moving <= _chunk_rows(head, plan)
        self.hidden = None
        if needs.hidden:
            self.hidden = torch.empty_like(head.hidden)
            self.hidden[plan.moving :] = 0
        # Of a single chunk the product itself is the gradient, rounded once.
        self.weight = None
        if needs.weight and not self.single:
            self.weight = torch.zeros_like(head.weight, dtype=_stats_type(head))
        self.bias = None
        if needs.bias:
            self.bias = head.weight.new_zeros(head.weight.shape[0], dtype=_stats_type(head))

    def add(self, rows: slice, dlogits: torch.Tensor) -> None:
        rows = slice(rows.start, min(rows.stop, self.moving))
        dlogits = dlogits[: max(0, rows.stop - rows.start)]
        if len(dlogits) == 0:
            return
        if self.hidden is not None:
            torch.mm(dlogits, self.head.weight, out=self.hidden[rows])
        if self.needs.weight:
            states = self.head.hidden[rows]
            if self.single:
                self.weight = torch.mm(dlogits.T, states)
            elif self.weight is not None:
                _add_product(self.weight, dlogits.T, states)
        if self.bias is not None:
            # dlogits has the temperature's factor in it, which the bias does not meet.
            self.bias += dlogits.sum(0, dtype=self.bias.dtype) * self.head.temperature

    def finish(self) -> tuple[torch.Tensor | None, ...]:
        head = self.head
        if self.needs.weight and self.weight is None:  # no rows with a gradient at all
            self.weight = torch.zeros_like(head.weight)
        weight = None if self.weight is None else self.weight.to(head.weight.dtype)
        bias = None
        if self.bias is not None and head.bias is not None:
            bias = self.bias.to(head.bias.dtype)
        return self.hidden, weight, bias


def _chunks(head: Head, plan: Plan) -> Iterator[tuple[slice, torch.Tensor]]:
    """Rows and their logits [R, V], which the next chunk overwrites."""
    count, vocab = len(head.hidden), head.weight.shape[0]
    step = _chunk_rows(head, plan)
    pitch = (vocab + PITCH_ALIGN - 1) // PITCH_ALIGN * PITCH_ALIGN
    height = min(step, (count + PRODUCT_ROWS - 1) // PRODUCT_ROWS * PRODUCT_ROWS)
    buffer = head.hidden.new_empty((height, pitch), dtype=_stats_type(head))
    for first in range(0, count, step):
        rows = slice(first, min(first + step, count))
        for at in range(rows.start, rows.stop, PRODUCT_ROWS if plan.same_bits else step):
            _logits(head, slice(at, rows.stop), plan, buffer[at - first :])
        yield rows, buffer[: rows.stop - first, :vocab]


def _logits(head: Head, rows: slice, plan: Plan, out: torch.Tensor) -> None:
    """Logits of one product into the first rows of ``out`` [., pitch]."""
    states, vocab = head.hidden[rows], head.weight.shape[0]
    if plan.same_bits:
        states = states[:PRODUCT_ROWS]
        missing = PRODUCT_ROWS - len(states)
        if missing > 0:
            states = torch.nn.functional.pad(states, (0, 0, 0, missing))
    _product(states, head.weight.T, out[: len(states), :vocab])


def _product(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
    """``a @ b`` of narrow operands with results of ``out``'s type, never rounded in between."""
    if a.dtype == out.dtype:
        torch.mm(a, b, out=out)
    elif a.device.type == "cpu":
        torch.mm(a.to(out.dtype), b.to(out.dtype), out=out)
    else:
        torch.mm(a, b, out_dtype=out.dtype, out=out)


def _add_product(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """``total += a @ b``, likewise."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    elif a.device.type == "cpu":
        total.addmm_(a.to(total.dtype), b.to(total.dtype))
    else:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)


def _chunk_rows(head: Head, plan: Plan) -> int:
    """Rows of a chunk: what the budget holds, in whole products."""
    row_bytes = (head.weight.shape[0] + PITCH_ALIGN) * _stats_type(head).itemsize
    return max(1, plan.memory_budget // (row_bytes * PRODUCT_ROWS)) * PRODUCT_ROWS


def _stats_type(head: Head) -> torch.dtype:
    return statistics_dtype(head.hidden.dtype)


def _kernel_bias(head: Head) -> torch.Tensor | None:
    """The bias as row kernels take it: in the type of the statistics, on 16 bytes."""
    if head.bias is None:
        return None
    bias = head.bias.to(_stats_type(head)).contiguous()
    return bias if bias.data_ptr() % 16 == 0 else bias.clone()


def _empty_stats(head: Head) -> RowStats:
    size, dtype = len(head.targets), _stats_type(head)
    return RowStats(*(head.hidden.new_empty(size, dtype=dtype) for _ in RowStats._fields))


def _store(found: RowStats, part: RowStats, rows: slice) -> None:
    for whole, values in zip(found, part, strict=True):
        whole[rows] = values
