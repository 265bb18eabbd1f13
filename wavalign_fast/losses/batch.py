"""The flat tables that the objective computes a step from."""

from dataclasses import dataclass

import torch

from wavalign_fast.losses import padded
from wavalign_fast.losses.all_reduce import in_process_group
from wavalign_fast.losses.rewards import refuse_infinite, rewards_table
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

    Args:
        targets: [T] int64 ids; of any value where both rows are -1.
        policy_row: [T] int64 in [0, B·G) or -1: rollout g of prompt b is row b·G + g.
        anchor_row: [T] int64 in [0, 2^24) or -1, an index of demonstrations; with gaps if need be.
            On another device than the CPU it must be below T.
        rewards: [B, G] floats, or a nested list of numbers. NaN or ``None`` is a missing reward.
        ref_logp: [T] floats, log-probs of the targets under the reference, for the KL.
        old_logp: [T] floats, log-probs of the targets under the policy that sampled them; ``None``
            if that is the policy itself.
        importance: [T] floats >= 0, constant weights of the policy surrogate, not of the KL; such
            as ``truncated_importance``, where another implementation of the policy sampled.

    All three are constants without a gradient. They must be finite at the tokens of their term and
    may have any value elsewhere. A token that was forced, not sampled, may have a log-prob of
    -inf; it belongs to no ``policy_row``.

    Raises:
        ValueError: a table that does not fit; on the CPU also a row out of range or an infinite
            reward. In a process group the objective refuses the infinite reward, on every rank.
    """

    targets: torch.Tensor
    policy_row: torch.Tensor
    anchor_row: torch.Tensor
    rewards: torch.Tensor
    ref_logp: torch.Tensor | None = None
    old_logp: torch.Tensor | None = None
    importance: torch.Tensor | None = None

    def __post_init__(self) -> None:
        # The only way to set a field of a frozen dataclass.
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
        self._check_rows("policy_row", self.rewards.numel(), "B·G")
        self._check_rows("anchor_row", MAX_SEGMENTS, "2^24")

    def to(self, device: torch.device | str) -> "HybridBatch":
        """The batch on ``device``; the host does not wait for the copy."""
        (there,) = copied_together(torch.device(device), self)
        return there

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
        rewards: torch.Tensor,
        prompt_lengths: torch.Tensor,
        ref_logp: torch.Tensor | None = None,
        old_logp: torch.Tensor | None = None,
        *,
        importance: torch.Tensor | None = None,
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
            rewards: [B, G] floats, or a nested list of numbers.
            prompt_lengths: [B] whole numbers, the tokens of each prompt without padding.
            ref_logp: [B·G, L - 1] floats; column t is the log-prob of id t + 1.
            old_logp, importance: [B·G, L - 1] floats, likewise.
            attention_mask: [R, L] or [B·G, L], 1 on tokens and 0 on padding.

        Returns:
            A batch of T = R·L positions for hidden states [R, L, H].

        Raises:
            ValueError: an argument that does not fit, under its name here.
        """
        rows = padded.PaddedRows.of(
            input_ids=input_ids,
            completion_mask=completion_mask,
            labels=labels,
            rewards=rewards_table(rewards),
            prompt_lengths=prompt_lengths,
            attention_mask=attention_mask,
        )
        return cls(
            targets=rows.targets(),
            policy_row=rows.policy_row(),
            anchor_row=rows.anchor_row(),
            rewards=rows.rewards,
            ref_logp=rows.flat_logps("ref_logp", ref_logp),
            old_logp=rows.flat_logps("old_logp", old_logp),
            importance=rows.flat_logps("importance", importance),
        )
