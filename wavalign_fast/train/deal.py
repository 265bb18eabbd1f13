"""Deals the rows of a step to ranks and to micro-batches.

The result depends on the rows alone. Every rank has all rows of the step and computes the same
result, so the ranks need not agree on anything.
"""

from collections.abc import Sequence
from typing import Protocol, TypeVar


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
"""The micro-batches of one rank: rows of one kind and of similar length, completions first."""


def deal(
    rows: Sequence[R], *, world: int, block_tokens: int, packed: bool = False
) -> list[MicroBatches[R]]:
    """Returns the micro-batches of every rank.

    Args:
        block_tokens: a micro-batch is closed once it has this many positions, padding included.
        packed: whether its rows are laid out without padding.
    """
    return [_micro_batches(part, block_tokens, packed) for part in _to_ranks(rows, world)]


def rounds(dealt: Sequence[MicroBatches[R]]) -> tuple[int, int]:
    """Returns how many micro-batches the busiest rank has, and how many of completions.

    All ranks run as many forward passes, because each one is a collective operation.
    """
    return (
        max(map(len, dealt), default=0),
        max((sum(part[0].is_rollout for part in mine) for mine in dealt), default=0),
    )


def _to_ranks(rows: Sequence[R], world: int) -> list[list[R]]:
    """Gives each row, the longest first, to the rank with the fewest tokens so far."""
    if world == 1:
        return [list(rows)]
    parts: list[list[R]] = [[] for _ in range(world)]
    tokens = [0] * world
    for row in sorted(rows, key=len, reverse=True):
        least = tokens.index(min(tokens))
        parts[least].append(row)
        tokens[least] += len(row)
    return parts


def _micro_batches(rows: Sequence[R], block_tokens: int, packed: bool) -> MicroBatches[R]:
    """Groups rows of one kind by descending length, so that a block needs little padding."""
    groups: MicroBatches[R] = []
    for kind in (True, False):
        start = len(groups)
        for row in sorted((r for r in rows if r.is_rollout is kind), key=len, reverse=True):
            if len(groups) == start or _positions(groups[-1], packed) >= block_tokens:
                groups.append([])
            groups[-1].append(row)
    return groups


def _positions(group: Sequence[R], packed: bool) -> int:
    return sum(map(len, group)) if packed else len(group) * len(group[0])
