"""Puts the completions and rewards of all ranks on all ranks.

Every rank then builds the same tables: λ, advantages and denominators have the same bits on all
ranks, and the rows are dealt without further agreement. 1024 completions of 2000 ids, each with its
log-prob, are 16 MB.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from wavalign_fast.data.records import Completion, Example
from wavalign_fast.train.ranks import Ranks


def own_prompts(count: int, ranks: Ranks) -> list[int]:
    """Returns which of ``count`` prompts of a step this rank samples from."""
    return list(range(ranks.rank, count, ranks.world))


def everywhere(
    mine: Sequence[Completion],
    rewards: Tensor,
    examples: Sequence[Example],
    group_size: int,
    ranks: Ranks,
) -> tuple[list[Completion], Tensor]:
    """Returns all completions and rewards of the step in the order of its prompts.

    Args:
        mine: this rank's completions with their log-probs, ``group_size`` of each of its
            ``own_prompts``.
        rewards: float32 [len(mine)], NaN for a missing one.
        examples: the prompts of the step, the same on all ranks.

    Returns:
        B·G completions by prompt, and rewards float32 [B, G].
    """
    if ranks.world == 1:
        return list(mine), rewards.view(-1, group_size)
    lengths = torch.tensor([len(done.ids) for done in mine], dtype=torch.int32)
    ended = torch.tensor([done.ended for done in mine], dtype=torch.bool)
    ids = torch.tensor([token for done in mine for token in done.ids], dtype=torch.int32)
    logps = torch.cat([torch.empty(0), *(done.logps for done in mine if done.logps is not None)])
    found: list[Completion | None] = [None] * (len(examples) * group_size)
    table = torch.empty(len(examples), group_size)
    for rank, part in enumerate(ranks.gather((lengths, ended, ids, logps, rewards))):
        prompts = range(rank, len(examples), ranks.world)
        indices = [prompt * group_size + g for prompt in prompts for g in range(group_size)]
        rows, of_rows = (ids_or_logps.split(part[0].tolist()) for ids_or_logps in part[2:4])
        for index, row, row_logps, has_ended in zip(
            indices, rows, of_rows, part[1].tolist(), strict=True
        ):
            found[index] = Completion(
                example=examples[index // group_size],
                ids=tuple(row.tolist()),
                ended=has_ended,
                logps=row_logps,
            )
        table.view(-1)[indices] = part[4]
    return [done for done in found if done is not None], table
