"""The rows that carry loss: which they are, and how they are gathered and scattered back."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wavalign_fast.ops.chunked import kernels
from wavalign_fast.ops.dtypes import statistics_dtype
from wavalign_fast.ops.operands import Operands
from wavalign_fast.ops.token_math import TokenTable, may_have_gradient
from wavalign_fast.ops.transfer import capturing, copied_to, refuse_in_capture


@dataclass(frozen=True, eq=False)
class RowIndex:
    """Which rows of a call carry loss."""

    index: Tensor
    """[N] int64, first the rows that may have a gradient; -1 is no row. On the device of the rows,
    or on the CPU if the targets are there."""
    grad_rows: int
    """How many of the rows may have a gradient."""
    count: Tensor | None = None
    """[1], how many rows carry loss, if N is a bound that may be too small."""


def index_live_rows(
    targets: Tensor,
    ignore_index: int,
    device: torch.device,
    backend: str,
    *,
    capacity: int | None = None,
    table: TokenTable | None = None,
) -> RowIndex:
    """Finds the rows of ``targets`` [T] that are not ignored.

    The host has to know how many there are, since that is the height of the GEMMs. It knows without
    a sync if the targets are on the CPU or a ``capacity`` is given. Otherwise it syncs for this one
    number, or takes all rows while a graph is captured or traced, whose shapes are fixed.

    Args:
        device: where the hidden states are.
        capacity: the length N of the index, which is filled up with -1.
        table: columns [T], which say which rows may have a gradient. They count only if both
            tables are on the CPU, since the host has to know the number of these rows too;
            otherwise every row may have one.
    """
    live = targets != ignore_index
    traced = torch.compiler.is_compiling()
    if capacity is not None and (traced or targets.device == device):
        index, count = compact_rows(copied_to(live, device, "targets"), capacity, backend)
        return RowIndex(index, capacity, count)
    if traced or capturing(device):
        return RowIndex(torch.arange(len(targets), device=device), len(targets))
    index = torch.nonzero(live).squeeze(-1)
    first = len(index)
    if table is not None and {table.policy_coef.device.type, targets.device.type} == {"cpu"}:
        may = may_have_gradient(table)[index]
        index = torch.cat([index[may], index[~may]])
        first = int(may.sum())
    if capacity is None:
        return RowIndex(index, first)
    count = torch.tensor([len(index)])
    index = torch.cat([index[:capacity], index.new_full((max(0, capacity - len(index)),), -1)])
    return RowIndex(index, min(first, capacity), count)


@dataclass(frozen=True, eq=False)
class LiveRows:
    """N of the T rows of a call, in the order of ``index_live_rows``."""

    total: int
    """T"""
    grad_rows: int
    """How many rows may have a gradient; they come first."""
    index: Tensor
    """[N] int64; -1 is no row."""
    targets: Tensor
    """[N] int64"""
    count: Tensor | None
    """[1], how many rows carry loss, if N is a bound that may be too small."""
    table: TokenTable | None
    """Columns [N], in the dtype of the statistics."""

    def scatter_scores(
        self, scores: Sequence[Tensor], top: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """``scatter`` of log-probs, entropies and lse, and of ``top`` [N] bool if it is given."""
        if top is None:
            logp, entropy, lse = self.scatter(scores)
            return logp, entropy, lse, None
        logp, entropy, lse, found = self.scatter([*scores, top.to(scores[0].dtype)])
        return logp, entropy, lse, found.detach() > 0

    def scatter(self, values: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Each of ``values`` [N] as [T], 0 at other rows; all NaN if the bound was too small."""
        tables = scattered(values, self.index, self.total)
        if self.count is not None:
            tables = torch.where(self.count > len(self.index), torch.nan, tables)
        # Not `unbind`: torch forbids to change its results in place.
        return tuple(tables[i] for i in range(len(tables)))


def select_live_rows(
    operands: Operands, ignore_index: int, table: TokenTable | None = None, *, columns: bool = True
) -> LiveRows:
    """Selects the rows of ``operands`` that carry loss.

    If the tables are on the CPU, so is the result, to be copied to the device with others.

    Args:
        table: columns [T], which also say which rows may have a gradient.
        columns: whether the result has the columns of ``table``.
    """
    device = operands.rows.device
    refuse_in_capture(device, targets=operands.targets)
    live = index_live_rows(
        operands.targets,
        ignore_index,
        device,
        operands.backend,
        capacity=operands.options.live_rows,
        table=table,
    )
    tables = [operands.targets]
    given = [] if table is None or not columns else [c for c in table if c is not None]
    if given:
        tables.append(torch.stack(given))
    beside = all(t.device == live.index.device for t in tables)
    where = live.index.device if beside else device
    index = copied_to(live.index, where)
    ids, *taken = (
        gathered(copied_to(t, where), index, missing)
        for t, missing in zip(tables, (ignore_index, 0.0), strict=False)
    )
    found = None
    if table is not None and columns:
        values = iter(taken[0].to(statistics_dtype(operands.rows.dtype)))
        found = TokenTable._make(None if column is None else next(values) for column in table)
    return LiveRows(len(operands.targets), live.grad_rows, index, ids, live.count, found)


def gathered(table: Tensor, index: Tensor, missing: float) -> Tensor:
    """``table[..., index]`` [..., N] of a table [..., T]; ``missing`` where the index is -1."""
    if table.shape[-1] == 0:
        return table.new_full((*table.shape[:-1], len(index)), missing)
    return table.index_select(-1, index.clamp(min=0)).masked_fill_(index < 0, missing)


def scattered(values: Sequence[Tensor], index: Tensor, count: int) -> Tensor:
    """K values [N] scattered to their rows, as [K, count]; 0 elsewhere. Differentiable."""
    stacked = torch.stack([*values])
    slot = torch.where(index < 0, count, index)
    table = stacked.new_zeros((len(stacked), count + 1)).index_copy(1, slot, stacked)
    return table[:, :count]


@torch.library.custom_op("wavalign_fast::compact_live_rows", mutates_args=())
def compact_rows(live: Tensor, capacity: int, backend: str) -> tuple[Tensor, Tensor]:
    """See ``row_ops.compact_rows``."""
    return kernels.row_kernels_of(backend).compact_rows(live, capacity=capacity)


@torch.library.custom_op("wavalign_fast::gather_live_rows", mutates_args=())
def gather_live_rows(source: Tensor, index: Tensor, backend: str) -> Tensor:
    """Rows [N, H] of ``source`` [T, H], zeros where the index [N] is -1; it names no row twice."""
    return kernels.row_kernels_of(backend).gather_rows(source, index)


@torch.library.custom_op("wavalign_fast::scatter_live_rows", mutates_args=())
def scatter_live_rows(rows: Tensor, index: Tensor, count: int, backend: str) -> Tensor:
    """Rows [N, H] scattered into [count, H]; zeros elsewhere."""
    target = rows.new_zeros((count, rows.shape[1]))
    return kernels.row_kernels_of(backend).scatter_rows_(rows.contiguous(), index, target)


@compact_rows.register_fake
def _(live, capacity, backend):  # type: ignore[no-untyped-def]
    return tuple(live.new_empty(n, dtype=torch.int64) for n in (capacity, 1))


@gather_live_rows.register_fake
def _(source, index, backend):  # type: ignore[no-untyped-def]
    return source.new_empty((index.shape[0], source.shape[1]))


@scatter_live_rows.register_fake
def _(rows, index, count, backend):  # type: ignore[no-untyped-def]
    return rows.new_empty((count, rows.shape[1]))


def _gather_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    source, index, ctx.backend = inputs
    ctx.save_for_backward(index)
    ctx.count = source.shape[0]


def _gather_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return scatter_live_rows(grad, ctx.saved_tensors[0], ctx.count, ctx.backend), None, None


def _scatter_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, index, _, ctx.backend = inputs
    ctx.save_for_backward(index)


def _scatter_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return gather_live_rows(grad.contiguous(), ctx.saved_tensors[0], ctx.backend), None, None, None


gather_live_rows.register_autograd(_gather_backward, setup_context=_gather_context)
scatter_live_rows.register_autograd(_scatter_backward, setup_context=_scatter_context)
