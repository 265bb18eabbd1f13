"""Lists the tokens that a step computes, from which its model flops are counted."""

from collections.abc import Sequence

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
) -> StepTokens:
    """Returns the tokens of a step over all ranks.

    Args:
        rows: the rows that go forward and backward.
        completions: all completions of the step, ``group_size`` a prompt.
        updates: how many times they do.
        scored: how many times the rows of the rollouts go forward only, to be scored.
    """
    rollouts = scored * [row for row in rows if row.is_rollout]
    return StepTokens(
        trained=updates * [len(row) for row in rows],
        live=updates * sum(_live(row, loss_ids) for row in rows),
        scored=[len(row) for row in rollouts],
        scored_live=sum(len(row.answer) for row in rollouts),
        prompts=[len(done.example.prompt_ids) for done in completions[::group_size]],
        completions=[(len(done.example.prompt_ids), len(done.ids)) for done in completions],
    )


def _live(row: Row, loss_ids: LossIds) -> int:
    carries_loss = loss_ids.policy if row.is_rollout else loss_ids.anchor
    return sum(carries_loss[token] for token in row.learnt)
