"""Names the rows of a step whose log-probs or gradients are not finite."""

from collections.abc import Callable, Sequence

from torch import Tensor

from wavalign_fast.train.ranks import Ranks
from wavalign_fast.train.token_blocks import NOT_IN_A_ROW, RowTables

MOST_NAMED = 8


class NonFiniteRows:
    """Notes for every micro-batch of a step which positions are broken, without a host sync.

    ``names`` reads the notes, and is asked only after a step whose gradient was not finite.
    """

    def __init__(self, rollout_name: Callable[[int], str]) -> None:
        self._notes: list[tuple[RowTables, Tensor]] = []
        self._rollout_name = rollout_name

    def watch(self, hidden: Tensor, tables: RowTables) -> None:
        """Notes the positions of ``hidden`` [T, H] that are not finite, or whose gradient is not.

        The gradient is that of the loss alone. An overflow further down in the backward pass is not
        seen, unless the row's hidden states are broken too.
        """
        broken = ~hidden.detach().isfinite().all(-1)
        self._notes.append((tables, broken))
        if hidden.requires_grad:
            hidden.register_hook(lambda gradient: _note(broken, gradient))

    def names(self, ranks: Ranks) -> list[str]:
        """Returns the names of the broken rows of all ranks, on every rank."""
        found = set()
        for tables, broken in self._notes:
            where = broken.cpu()
            for kind, rows in (("rollout", tables.policy_row), ("anchor", tables.anchor_row)):
                found |= {
                    (kind, row) for row in rows[where].unique().tolist() if row != NOT_IN_A_ROW
                }
        every = sorted(set().union(*ranks.gather(found)))
        return [
            self._rollout_name(row) if kind == "rollout" else f"demonstration {row}"
            for kind, row in every
        ]


def _note(broken: Tensor, gradient: Tensor) -> None:
    broken |= ~gradient.detach().isfinite().all(-1)


def listed(names: Sequence[str]) -> str:
    """Returns ``names`` in one line, the first few in full."""
    if not names:
        return "none of the step's rows alone: the gradient overflows in the backward pass"
    shown = ", ".join(names[:MOST_NAMED])
    more = len(names) - MOST_NAMED
    return f"{shown} and {more} more" if more > 0 else shown
