"""Lists the tokens that a step computes, from which its model flops are counted."""

from collections.abc import Sequence, Sized

from wavalign_fast.data.records import Completion
from wavalign_fast.train.flops import StepTokens
from wavalign_fast.train.token_blocks import LossIds, Row


def step_work(
    rows: Sequence[Row],
    completions: Sequence[Completion],
    *,
    loss_ids: LossIds,
    group_size: int,
    updates: int = 1,
    scored: int = 0,
    ids_a_position: int = 1,
) -> StepTokens:
    """Returns the tokens of a step over all ranks.

    Args:
        rows: the rows that go forward and backward.
        completions: all completions of the step, ``group_size`` a prompt.
        updates: how many times they do.
        scored: how many times the rows of the rollouts go forward only, to be scored.
        ids_a_position: 2 where two streams stand in one list.
    """

    def positions(ids: Sized) -> int:
        return len(ids) // ids_a_position

    rollouts = scored * [row for row in rows if row.is_rollout]
    return StepTokens(
        trained=updates * [positions(row) for row in rows],
        live=updates * sum(_live(row, loss_ids) for row in rows),
        scored=[positions(row) for row in rollouts],
        scored_live=sum(len(row.chosen) for row in rollouts),
        prompts=[positions(done.example.prompt_ids) for done in completions[::group_size]],
        completions=[
            (positions(done.example.prompt_ids), positions(done.ids)) for done in completions
        ],
    )


def _live(row: Row, loss_ids: LossIds) -> int:
    carries_loss = loss_ids.policy if row.is_rollout else loss_ids.anchor
    return sum(carries_loss[token] for token in row.learnt)
