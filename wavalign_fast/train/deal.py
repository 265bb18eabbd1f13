"""Deals the rows of a step to ranks and to micro-batches.

The result depends on the rows alone. Every rank has all rows of the step and computes the same
result, so the ranks need not agree on anything.
"""

from collections.abc import Sequence
from typing import Protocol, TypeVar

from wavalign_fast.data.packing_plan import plan_packing


class Dealt(Protocol):
    """A row, or rows that stay together."""

    @property
    def is_rollout(self) -> bool:
        """Which of the two kinds it is; a micro-batch has one kind."""
        ...

    def __len__(self) -> int:
        """Its positions."""
        ...


R = TypeVar("R", bound=Dealt)

MicroBatches = list[list[R]]
"""The micro-batches of one rank: rows of one kind, completions first. Padded rows of one have
similar lengths."""


def deal(
    rows: Sequence[R],
    *,
    world: int,
    block_tokens: int,
    packed: bool = False,
    beside: Sequence[MicroBatches[R]] = (),
) -> list[MicroBatches[R]]:
    """Returns the micro-batches of every rank.

    Args:
        block_tokens: a micro-batch of padded rows is closed once it has this many positions,
            padding included; one of packed rows has no more, unless a single row has.
        packed: whether its rows are laid out without padding.
        beside: micro-batches that the ranks have already; who has less gets more.
    """
    loads = [sum(len(row) for part in mine for row in part) for mine in beside] or [0] * world
    plan = _packed if packed else _padded
    return [
        [
            group
            for kind in (True, False)
            for group in plan([row for row in part if row.is_rollout is kind], block_tokens)
        ]
        for part in _to_ranks(rows, loads)
    ]


def rounds(dealt: Sequence[MicroBatches[R]]) -> tuple[int, int]:
    """Returns how many micro-batches the busiest rank has, and how many of completions.

    All ranks run as many forward passes, because each one is a collective operation.
    """
    return (
        max(map(len, dealt), default=0),
        max((sum(part[0].is_rollout for part in mine) for mine in dealt), default=0),
    )


def _to_ranks(rows: Sequence[R], loads: Sequence[int]) -> list[list[R]]:
    """Gives each row, the longest first, to the rank with the fewest tokens so far."""
    if len(loads) == 1:
        return [list(rows)]
    parts: list[list[R]] = [[] for _ in loads]
    tokens = list(loads)
    for row in sorted(rows, key=len, reverse=True):
        least = tokens.index(min(tokens))
        parts[least].append(row)
        tokens[least] += len(row)
    return parts


def _padded(rows: Sequence[R], block_tokens: int) -> MicroBatches[R]:
    """Groups rows by descending length, so that a block needs little padding."""
    groups: MicroBatches[R] = []
    for row in sorted(rows, key=len, reverse=True):
        if not groups or len(groups[-1]) * len(groups[-1][0]) >= block_tokens:
            groups.append([])
        groups[-1].append(row)
    return groups


def _packed(rows: Sequence[R], block_tokens: int) -> MicroBatches[R]:
    """Packs rows by first-fit decreasing; a row with more tokens than a block has one alone."""
    long = sorted((row for row in rows if len(row) > block_tokens), key=len, reverse=True)
    others = [row for row in rows if len(row) <= block_tokens]
    plan = plan_packing([len(row) for row in others], block_tokens)
    return [[row] for row in long] + [[others[place] for place in group] for group in plan]
