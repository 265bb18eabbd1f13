"""Packs rows of different lengths under a token budget. The definition is plain Python."""

from collections.abc import Sequence

from wavalign_fast.data.host import HOST
from wavalign_fast.errors import UserError


def plan_packing(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Groups rows so that no group has more than ``budget`` tokens, by first-fit decreasing.

    The longest row comes first, equal lengths in the order given; each goes into the first group
    with room for it, or opens a new one. At most 11/9 of the fewest possible groups, plus 6/9, are
    made (Dósa 2007). The result depends on the arguments alone. 10^6 rows take under 2 s
    where ``wavalign_fast._host`` was built, a dozen seconds in plain Python.

    Args:
        lengths: tokens of each row, at least 1.

    Returns:
        The indices of the rows of each group, the longest row first.

    Raises:
        UserError: a row is empty or longer than the budget.
    """
    if len(lengths) and (min(lengths) < 1 or max(lengths) > budget):
        row = next(row for row, length in enumerate(lengths) if not 1 <= length <= budget)
        raise UserError(
            f"row {row} has {lengths[row]} tokens, wanted 1 to {budget}, the budget of a group"
        )
    if HOST is not None:
        groups: list[list[int]] = HOST.first_fit_decreasing(lengths, budget)
        return groups
    return _first_fit_decreasing(lengths, budget)


def _first_fit_decreasing(lengths: Sequence[int], budget: int) -> list[list[int]]:
    leaves = 1
    while leaves < len(lengths):
        leaves *= 2
    # A tree over all groups, also those not opened yet: an inner node has the most room of any
    # group below it, so the first group with room is found in log2(groups) steps.
    room = [budget] * (2 * leaves)
    groups: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        node = 1
        while node < leaves:
            node *= 2
            node += room[node] < lengths[row]
        if node - leaves == len(groups):
            groups.append([])
        groups[node - leaves].append(row)
        room[node] -= lengths[row]
        while node > 1:
            node //= 2
            room[node] = max(room[2 * node], room[2 * node + 1])
    return groups
