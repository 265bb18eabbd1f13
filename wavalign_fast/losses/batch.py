"""The flat tables a hybrid step is computed from."""

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

    Position t's hidden state predicts ``targets[t]``. It counts in rollout ``policy_row[t]``, in
    demonstration ``anchor_row[t]``, in neither or in both; -1 means not.

    Args:
        targets: [T] int64 ids; anything where both rows are -1.
        policy_row: [T] int64, in [0, B·G): rollout g of prompt b is row b·G + g.
        anchor_row: [T] int64, any index of a demonstration below 2^24 (on another device than the
            CPU < T).
        rewards: [B, G] floats, NaN = missing; a nested list with numbers and ``None`` becomes one.
        ref_logp: [T] log-probs of the targets under the reference, for the KL terms.
        old_logp: [T] log-probs under the policy that sampled; absent: the policy itself.

    Both log-probs are constants that get no gradient, finite at the tokens of their term, and
    anything elsewhere. A token that was forced, not sampled, may have -inf and belongs to no
    ``policy_row``.

    Raises:
        ValueError: what does not fit; on the CPU also rows out of range and infinite rewards. In a
            process group the objective refuses infinite rewards, on every rank.
    """

    targets: torch.Tensor
    policy_row: torch.Tensor
    anchor_row: torch.Tensor
    rewards: torch.Tensor
    ref_logp: torch.Tensor | None = None
    old_logp: torch.Tensor | None = None

    def __post_init__(self) -> None:
        # Of a frozen dataclass; anyone else would be surprised by such a change.
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
        for name in ("ref_logp", "old_logp"):
            table = getattr(self, name)
            if table is not None:
                check_tensor(name, table)
                check_floats(name, table)
                object.__setattr__(self, name, table.detach())
        for name in ("policy_row", "anchor_row", "ref_logp", "old_logp"):
            table = getattr(self, name)
            if table is not None and table.shape != shape:
                raise ValueError(f"{name}: got shape {tuple(table.shape)}, want {tuple(shape)}")
        self._check_rows("policy_row", self.rewards.numel(), "B·G")
        self._check_rows("anchor_row", MAX_SEGMENTS, "2^24")

    def to(self, device: torch.device | str) -> "HybridBatch":
        """The batch on ``device``; the host does not wait for the copies."""
        (there,) = copied_together(torch.device(device), self)
        return there

    @property
    def anchor_rows(self) -> int:
        """At least the number of demonstrations; a device is not waited for to count them."""
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
        attention_mask: torch.Tensor | None = None,
    ) -> "HybridBatch":
        """The released code's layout: B·G rollout rows, then demonstration rows.

        Without an ``attention_mask`` the rows must be right-padded. Left-padded prompts (as TRL and
        ``generate`` make them) need one, for nothing else says where a prompt begins; rows that
        cannot be right-padded are refused, where the ids are on the CPU. Padding between a prompt
        and its completion counts as prompt.

        Args:
            input_ids: [R, L] ids.
            completion_mask: [B·G, C], 1 on completion tokens; column 0 is each row's prompt end.
            labels: [R, L]; -100 on rollout rows and on unlabelled tokens of demonstrations.
            rewards: [B, G], or a nested list.
            prompt_lengths: [B], tokens of each prompt, padding not counted.
            ref_logp: [B·G, L - 1]; column t scores id t + 1. ``old_logp`` likewise.
            attention_mask: [R, L] or [B·G, L], 1 on tokens and 0 on padding.

        Returns:
            A batch of T = R·L positions for hidden states [R, L, H].

        Raises:
            ValueError: what does not fit, by the name it has here.
        """
        rows = padded.PaddedRows.of(
            input_ids,
            completion_mask,
            labels,
            rewards_table(rewards),
            prompt_lengths,
            attention_mask,
        )
        return cls(
            targets=rows.targets(),
            policy_row=rows.policy_row(),
            anchor_row=rows.anchor_row(),
            rewards=rows.rewards,
            ref_logp=rows.flat_logps("ref_logp", ref_logp),
            old_logp=rows.flat_logps("old_logp", old_logp),
        )
