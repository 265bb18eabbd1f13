"""The flat tables that the objective computes a step from."""

from dataclasses import dataclass

import torch

from wavalign_fast.losses import padded
from wavalign_fast.losses.all_reduce import in_process_group
from wavalign_fast.losses.rewards import (
    advantages_table,
    check_one_given,
    refuse_infinite,
    rewards_table,
)
from wavalign_fast.losses.segments import MAX_SEGMENTS
from wavalign_fast.ops.inputs import (
    can_be_read,
    check_device,
    check_floats,
    check_int64,
    check_tensor,
)
from wavalign_fast.ops.transfer import copied_together


@dataclass(frozen=True, eq=False)
class HybridBatch:
    """Rollouts and demonstrations of one step, position by position.

    The hidden state of position t predicts ``targets[t]``. The position counts in rollout
    ``policy_row[t]`` and in demonstration ``anchor_row[t]``; -1 means none.

    A batch may be a part of a step. Its ``rewards`` may then be the whole step's, on every rank the
    same, while its [T] tables hold only the rows that are here, under their indices in the step:
    advantages are right even where a group is split over parts. A rollout is whole in one part.

    ``advantages`` take the place of ``rewards`` where another program has computed them: TRL
    shuffles rollouts, so that a group is not whole in a part, and a reward may have several parts.
    Nothing is then computed from groups, so the caller gives what is: ``rl_weight`` to the
    objective, unless its gate is a constant, and ``normalisers`` if the batch is a part of a step.
    The metrics of rewards are left out (``HybridObjective.reward_metrics`` computes them).
    ``group_advantages(rewards)`` gives the loss that ``rewards`` give.

    Args:
        targets: [T] int64 ids; of any value where both rows are -1.
        policy_row: [T] int64 in [0, B·G) or -1: rollout g of prompt b is row b·G + g. In [0, N) for
            advantages [N].
        anchor_row: [T] int64 in [0, 2^24) or -1, an index of demonstrations; with gaps if need be.
            On another device than the CPU it must be below T.
        rewards: [B, G] floats, or a nested list of numbers. NaN or ``None`` is a missing reward.
            ``None`` beside advantages.
        ref_logp: [T] floats, log-probs of the targets under the reference, for the KL.
        old_logp: [T] floats, log-probs of the targets under the policy that sampled them; ``None``
            if that is the policy itself.
        importance: [T] floats >= 0, constant weights of the policy surrogate, not of the KL; such
            as ``truncated_importance``, where another implementation of the policy sampled.
        advantages: [N] floats, that of each rollout, in any order and of any groups; or [B, G].
            They are constants and finite. With [N], the entropies in ``metrics`` are means over the
            rollouts, for groups are unknown.

    The last three of [T] are constants without a gradient. They must be finite at the tokens of
    their term and may have any value elsewhere. A token that was forced, not sampled, may have a
    log-prob of -inf; it belongs to no ``policy_row``.

    Raises:
        ValueError: a table that does not fit; on the CPU also a row out of range or an infinite
            reward. In a process group the objective refuses the infinite reward, on every rank.
    """

    targets: torch.Tensor
    policy_row: torch.Tensor
    anchor_row: torch.Tensor
    rewards: torch.Tensor | None = None
    ref_logp: torch.Tensor | None = None
    old_logp: torch.Tensor | None = None
    importance: torch.Tensor | None = None
    advantages: torch.Tensor | None = None

    def __post_init__(self) -> None:
        check_one_given(self.rewards, self.advantages)
        # The only way to set a field of a frozen dataclass.
        if self.rewards is None:
            object.__setattr__(self, "advantages", advantages_table(self.advantages))
        else:
            object.__setattr__(self, "rewards", rewards_table(self.rewards))
            # If one rank raised here, the others would wait for it in the gate's all-reduce.
            if not in_process_group():
                refuse_infinite(self.rewards)
        for name in ("targets", "policy_row", "anchor_row"):
            check_tensor(name, getattr(self, name))
        shape, device = self.targets.shape, self.targets.device
        if len(shape) != 1:
            raise ValueError(f"targets: got shape {tuple(shape)}, want [T]")
        for name in ("targets", "policy_row", "anchor_row"):
            table = getattr(self, name)
            check_int64(name, table)
            check_device(name, table, device, "targets are")
        for name in ("ref_logp", "old_logp", "importance"):
            table = getattr(self, name)
            if table is not None:
                check_tensor(name, table)
                check_floats(name, table)
                object.__setattr__(self, name, table.detach())
        for name in ("policy_row", "anchor_row", "ref_logp", "old_logp", "importance"):
            table = getattr(self, name)
            if table is not None and table.shape != shape:
                raise ValueError(f"{name}: got shape {tuple(table.shape)}, want {tuple(shape)}")
        self._check_rows("policy_row", self.rollouts, "B·G" if self.rewards is not None else "N")
        self._check_rows("anchor_row", MAX_SEGMENTS, "2^24")

    def to(self, device: torch.device | str) -> "HybridBatch":
        """The batch on ``device``; the host does not wait for the copy."""
        (there,) = copied_together(torch.device(device), self)
        return there

    @property
    def of_rollouts(self) -> torch.Tensor:
        """The rewards, or else the advantages: a number of each rollout."""
        table = self.advantages if self.rewards is None else self.rewards
        assert table is not None  # one of the two was given
        return table

    @property
    def rollouts(self) -> int:
        """How many rollouts there are, those without a position here included."""
        return self.of_rollouts.numel()

    @property
    def group_size(self) -> int:
        """G, the rollouts of a prompt; 1 where the groups are unknown."""
        return self.of_rollouts.shape[1] if self.of_rollouts.dim() == 2 else 1

    @property
    def anchor_rows(self) -> int:
        """An upper bound of the number of demonstrations, without a host sync: T on a GPU."""
        length = self.anchor_row.shape[0]
        if length == 0 or not can_be_read(self.anchor_row):
            return length
        return int(self.anchor_row.max()) + 1

    def _check_rows(self, name: str, end: int, meaning: str) -> None:
        rows = getattr(self, name)
        if rows.numel() == 0 or not can_be_read(rows):
            return
        low, high = int(rows.min()), int(rows.max())
        if low < -1 or high >= end:
            seen = low if low < -1 else high
            raise ValueError(f"{name}: got {seen}, want -1 or a row in [0, {meaning} = {end})")

    @classmethod
    def from_padded(
        cls,
        input_ids: torch.Tensor,
        completion_mask: torch.Tensor,
        labels: torch.Tensor,
        rewards: torch.Tensor | None,
        prompt_lengths: torch.Tensor,
        ref_logp: torch.Tensor | None = None,
        old_logp: torch.Tensor | None = None,
        *,
        importance: torch.Tensor | None = None,
        advantages: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> "HybridBatch":
        """Reads padded rows, B·G rollouts and then demonstrations, as the released code has them.

        Without an ``attention_mask`` the rows must be right-padded. Left-padded prompts, as TRL and
        ``generate`` make them, need a mask: nothing else says where a prompt begins. Rows on the
        CPU that cannot be right-padded are refused. Padding between a prompt and its completion
        counts as prompt.

        Args:
            input_ids: [R, L] integer ids.
            completion_mask: [B·G, C], 1 on completion tokens and 0 elsewhere; column 0 is the first
                column after the row's prompt.
            labels: [R, L] integer ids; -100 on demonstration tokens without a loss. Rollout rows
                are not read.
            rewards: [B, G] floats, or a nested list of numbers; ``None`` beside advantages.
            prompt_lengths: [B] whole numbers, the tokens of each prompt without padding; [N], for
                each rollout, beside advantages [N].
            ref_logp: [B·G, L - 1] floats; column t is the log-prob of id t + 1.
            old_logp, importance: [B·G, L - 1] floats, likewise.
            advantages: [N] or [B, G] floats in place of rewards.
            attention_mask: [R, L] or [B·G, L], 1 on tokens and 0 on padding.

        Returns:
            A batch of T = R·L positions for hidden states [R, L, H].

        Raises:
            ValueError: an argument that does not fit, under its name here.
        """
        check_one_given(rewards, advantages)
        if advantages is None:
            table = rewards = rewards_table(rewards)
        else:
            table = advantages_table(advantages)
        rows = padded.PaddedRows.of(
            input_ids=input_ids,
            completion_mask=completion_mask,
            labels=labels,
            of_rollouts=table.unsqueeze(1) if table.dim() == 1 else table,
            prompt_lengths=prompt_lengths,
            attention_mask=attention_mask,
        )
        return cls(
            targets=rows.targets(),
            policy_row=rows.policy_row(),
            anchor_row=rows.anchor_row(),
            rewards=rewards,
            ref_logp=rows.flat_logps("ref_logp", ref_logp),
            old_logp=rows.flat_logps("old_logp", old_logp),
            importance=rows.flat_logps("importance", importance),
            advantages=advantages,
        )
