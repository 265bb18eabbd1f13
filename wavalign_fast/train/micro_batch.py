"""A micro-batch of one rank, and the log-probs that are constants of its loss."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from wavalign_fast.data.records import Completion
from wavalign_fast.losses import HybridBatch
from wavalign_fast.losses.two_heads import TwoHeads, rows_of_heads
from wavalign_fast.ops import IGNORE_INDEX, LogProb, LossOptions, linear_logprob
from wavalign_fast.ops.transfer import copied_to
from wavalign_fast.train.policy import Head, Policy, WithoutLora
from wavalign_fast.train.token_blocks import Row, RowTables, TokenBlock


@dataclass
class MicroBatch:
    """A block and the constants of its positions, each [T] once it is known."""

    block: TokenBlock
    sampler_logp: Tensor
    """Log-probs that the ids were sampled with; 0 where none was."""
    live: int
    """The most positions with loss in the micro-batch of any rank, for a sharded head; else 0."""
    sampled: int
    """The most sampled ids in the micro-batch of any rank."""
    anchored: bool
    """Whether some rank has demonstrations in its micro-batch."""
    ref_logp: Tensor | None = None
    """Log-probs of the sampled ids under the reference."""
    old_logp: Tensor | None = None
    """Log-probs under the policy before the first update on these rollouts. ``None`` during that
    update: the ratio is then exactly 1, and is not computed."""
    importance: Tensor | None = None
    """Weights of the policy surrogate."""

    @classmethod
    def of(
        cls,
        block: TokenBlock,
        rows: Sequence[Row],
        completions: Sequence[Completion],
        *,
        live: int,
        sampled: int,
        anchored: bool,
    ) -> "MicroBatch":
        """The micro-batch of ``block``, in which ``rows`` are laid out in this order."""
        sampler_logp = torch.zeros(block.tables.targets.shape)
        if block.is_rollout:
            known = [completions[row.index].logps for row in rows]
            parts = [
                torch.full((len(row.answer),), torch.nan) if logps is None else logps
                for row, logps in zip(rows, known, strict=True)
            ]
            cut = [part[list(row.chosen)] for row, part in zip(rows, parts, strict=True)]
            sampler_logp[block.tables.policy_row >= 0] = torch.cat(cut)
        return cls(block, sampler_logp, live, sampled, anchored)

    def batch(self, rewards: Tensor) -> HybridBatch:
        """The loss's tables; ``rewards`` are the whole step's, which the advantages need."""
        return self.block.tables.batch(
            rewards,
            ref_logp=self.ref_logp,
            old_logp=self.old_logp,
            importance=self.importance,
        )


@torch.no_grad()
def score_rollouts(
    policy: Policy | WithoutLora,
    micro: MicroBatch,
    *,
    temperature: float,
    options: LossOptions | None,
) -> Tensor:
    """Returns the log-probs [T] of the sampled ids of ``micro`` under ``policy``; 0 elsewhere.

    Args:
        temperature: that the ids were sampled at.
    """
    tables = micro.block.tables
    targets = tables.targets.where(tables.policy_row >= 0, IGNORE_INDEX)

    def score(hidden: Tensor, weight: Head, bias: Tensor | None) -> Tensor:
        if isinstance(weight, TwoHeads):
            scoring = partial(
                linear_logprob,
                temperature=temperature,
                transform=policy.transform,
                options=options,
            )
            return _of_heads(hidden, weight, tables, scoring)
        return linear_logprob(
            hidden,
            weight,
            targets,
            bias=bias,
            temperature=temperature,
            ignore_index=IGNORE_INDEX,
            transform=policy.transform,
            options=options,
        ).logp

    return policy([micro.block.ids], score, micro.sampled)


def _of_heads(
    hidden: Tensor,
    heads: TwoHeads,
    tables: RowTables,
    scoring: Callable[[Tensor, Tensor, Tensor], LogProb],
) -> Tensor:
    """As ``score_rollouts``, each id under the head of its stream."""
    found = hidden.new_zeros(len(tables.targets), dtype=torch.float32)
    sampled = tables.policy_row >= 0
    for head, own in zip(
        heads, rows_of_heads(tables.targets, sampled, len(heads.first)), strict=True
    ):
        where = copied_to(own.where, hidden.device)
        targets = tables.targets[own.where] - own.first_id
        logp = scoring(hidden.index_select(0, where).to(head.dtype), head, targets).logp
        found = found.to(logp.dtype).index_copy(0, where, logp)
    return found
