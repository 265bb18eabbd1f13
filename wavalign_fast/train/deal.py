"""Deals the rows of a step to ranks and to micro-batches.

The result depends on the rows alone. Every rank has all rows of the step and computes the same
result, so the ranks need not agree on anything.
"""

from collections.abc import Sequence

from wavalign_fast.train.token_blocks import Row

MicroBatches = list[list[Row]]
"""The micro-batches of one rank: rows of one kind and of similar length, completions first."""


def deal(
    rows: Sequence[Row], *, world: int, block_tokens: int, packed: bool = False
) -> list[MicroBatches]:
    """Returns the micro-batches of every rank.

    Args:
        block_tokens: a micro-batch is closed once it has this many positions, padding included.
        packed: whether its rows are laid out without padding.
    """
    return [_micro_batches(part, block_tokens, packed) for part in _to_ranks(rows, world)]


def rounds(dealt: Sequence[MicroBatches]) -> tuple[int, int]:
    """Returns how many micro-batches the busiest rank has, and how many of completions.

    All ranks run as many forward passes, because each one is a collective operation.
    """
    return (
        max(map(len, dealt), default=0),
        max((sum(part[0].is_rollout for part in mine) for mine in dealt), default=0),
    )


def _to_ranks(rows: Sequence[Row], world: int) -> list[list[Row]]:
    """Gives each row, the longest first, to the rank with the fewest tokens so far."""
    if world == 1:
        return [list(rows)]
    parts: list[list[Row]] = [[] for _ in range(world)]
    tokens = [0] * world
    for row in sorted(rows, key=len, reverse=True):
        least = tokens.index(min(tokens))
        parts[least].append(row)
        tokens[least] += len(row)
    return parts


def _micro_batches(rows: Sequence[Row], block_tokens: int, packed: bool) -> MicroBatches:
    """Groups rows of one kind by descending length, so that a block needs little padding."""
    groups: MicroBatches = []
    for kind in (True, False):
        start = len(groups)
        for row in sorted((r for r in rows if r.is_rollout is kind), key=len, reverse=True):
            if len(groups) == start or _positions(groups[-1], packed) >= block_tokens:
                groups.append([])
            groups[-1].append(row)
    return groups


def _positions(group: Sequence[Row], packed: bool) -> int:
    return sum(map(len, group)) if packed else len(group) * len(group[0])
