"""The rows of a call that carry loss, with what is known of each, and the way back."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wavalign_fast.ops.chunked import compaction
from wavalign_fast.ops.dtypes import statistics_dtype
from wavalign_fast.ops.operands import Operands
from wavalign_fast.ops.token_math import TokenTable
from wavalign_fast.ops.transfer import refuse_in_capture, sent


@dataclass(frozen=True, eq=False)
class Picked:
    """N of the T rows of a call, in the order of ``compaction.live_rows``."""

    total: int
    """T."""
    moving: int
    """How many may have a gradient, all of those the first."""
    index: Tensor
    """[N], -1 is none."""
    targets: Tensor
    """[N]."""
    count: Tensor | None
    """How many rows there are, [1], where N is a bound that may be too small."""
    table: TokenTable | None
    """Columns [N], in the type of the statistics."""

    def put_back(self, values: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """[T] from [N]; NaN where the bound did not hold all rows, for some are missing."""
        tables = compaction.in_place(values, self.index, self.total)
        if self.count is not None:
            tables = torch.where(self.count > len(self.index), torch.nan, tables)
        # Not `unbind`, whose results torch forbids to change in place.
        return tuple(tables[i] for i in range(len(tables)))


def pick(
    operands: Operands, ignore_index: int, table: TokenTable | None = None, *, columns: bool = True
) -> Picked:
    """The rows of ``operands`` that carry loss, with what ``table`` knows of each of the T.

    Tables on the CPU are picked from there and stay there, to be sent with others.

    Args:
        table: also says which rows may have a gradient.
        columns: whether the picked rows have its columns.
    """
    device = operands.rows.device
    refuse_in_capture(device, targets=operands.targets)
    live = compaction.live_rows(
        *(operands.targets, ignore_index, device, operands.backend),
        capacity=operands.options.live_rows,
        table=table,
    )
    tables = [operands.targets]
    given = [] if table is None or not columns else [c for c in table if c is not None]
    if given:
        tables.append(torch.stack(given))
    beside = all(t.device == live.index.device for t in tables)
    where = live.index.device if beside else device
    index = sent(live.index, where)
    ids, *picked = (
        compaction.at_rows(sent(t, where), index, missing)
        for t, missing in zip(tables, (ignore_index, 0.0), strict=False)
    )
    found = None
    if table is not None and columns:
        values = iter(picked[0].to(statistics_dtype(operands.rows.dtype)))
        found = TokenTable._make(None if column is None else next(values) for column in table)
    return Picked(len(operands.targets), live.moving, index, ids, live.count, found)
