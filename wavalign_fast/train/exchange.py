"""Puts the completions and rewards of all ranks on all ranks.

Every rank then builds the same tables: λ, advantages and denominators have the same bits on all
ranks, and the rows are dealt without further agreement. 1024 completions of 2000 ids, each with its
log-prob, are 16 MB.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from wavalign_fast.data.records import Completion, Example
from wavalign_fast.train.ranks import Ranks


def own_prompts(count: int, ranks: Ranks) -> list[int]:
    """Returns which of ``count`` prompts of a step this rank samples from."""
    return list(range(ranks.rank, count, ranks.world))


def everywhere(
    mine: Sequence[Completion], examples: Sequence[Example], group_size: int, ranks: Ranks
) -> list[Completion]:
    """Returns all B·G completions of the step in the order of its prompts.

    Args:
        mine: this rank's completions with their log-probs, ``group_size`` of each of its
            ``own_prompts``.
        examples: the prompts of the step, the same on all ranks.
    """
    if ranks.world == 1:
        return list(mine)
    lengths = torch.tensor([len(done.ids) for done in mine], dtype=torch.int32)
    ended = torch.tensor([done.ended for done in mine], dtype=torch.bool)
    ids = torch.tensor([token for done in mine for token in done.ids], dtype=torch.int32)
    logps = torch.cat([torch.empty(0), *(done.logps for done in mine if done.logps is not None)])
    found: list[Completion | None] = [None] * (len(examples) * group_size)
    for rank, part in enumerate(ranks.gather((lengths, ended, ids, logps))):
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
    return [done for done in found if done is not None]


def rewards_everywhere(mine: Tensor, prompts: int, group_size: int, ranks: Ranks) -> Tensor:
    """Returns the rewards of the step, float32 [B, G].

    Args:
        mine: float32 [N], those of this rank's ``own_prompts``; NaN for a missing one.
        prompts: how many the step has.
    """
    if ranks.world == 1:
        return mine.view(-1, group_size)
    table = torch.empty(prompts, group_size)
    for rank, part in enumerate(ranks.gather(mine)):
        table[rank :: ranks.world] = part.view(-1, group_size)
    return table


def metrics_everywhere(mine: Mapping[str, float], ranks: Ranks) -> dict[str, float]:
    """Returns a task's metrics over all ranks.

    They are sums, and of ``*_s`` and ``*_max`` the largest. A pair ``NAME_sum`` and ``NAME_count``
    becomes their ratio ``NAME``; there is none if nothing was counted.
    """
    merged: dict[str, float] = {}
    for part in ranks.gather(dict(mine)):
        for name, value in part.items():
            before = merged.get(name)
            if before is None:
                merged[name] = value
            elif name.endswith(("_s", "_max")):
                merged[name] = max(before, value)
            else:
                merged[name] = before + value
    means = [
        name[:-4] for name in merged if name.endswith("_sum") and f"{name[:-4]}_count" in merged
    ]
    for name in means:
        total, count = merged.pop(f"{name}_sum"), merged.pop(f"{name}_count")
        if count:
            merged[name] = total / count
    return merged
