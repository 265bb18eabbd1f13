"""The flat tables a hybrid step is computed from."""

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TypeVar

import torch

from wavalign_fast.ops import IGNORE_INDEX
from wavalign_fast.ops.live_rows import sent

Tables = TypeVar("Tables")


def on_device(tables: Tables, device: torch.device) -> Tables:
    """A dataclass with its tensors on ``device``."""
    assert is_dataclass(tables) and not isinstance(tables, type)
    values = {field.name: getattr(tables, field.name) for field in fields(tables)}
    here = {name: v for name, v in values.items() if isinstance(v, torch.Tensor)}
    if all(tensor.device == device for tensor in here.values()):
        return tables
    return replace(tables, **{name: sent(tensor, device) for name, tensor in here.items()})


@dataclass(frozen=True, eq=False)
class HybridBatch:
    """Rollouts and demonstrations of one step, position by position.

    Position t's hidden state predicts ``targets[t]``. It counts in rollout ``policy_row[t]``, in
    demonstration ``anchor_row[t]``, in neither or in both; -1 means not.

    Args:
        targets: [T] int64 ids; anything where both rows are -1.
        policy_row: [T] int64, in [0, B·G): rollout g of prompt b is row b·G + g.
        anchor_row: [T] int64, any index of a demonstration (on another device than the CPU < T).
        rewards: [B, G] floats, NaN = missing.
        ref_logp: [T] log-probs of the targets under the reference, for the KL terms.
        old_logp: [T] log-probs under the policy that sampled; absent: the policy itself.

    Both log-probs are finite at the tokens of their term, and anything elsewhere. A token that was
    forced, not sampled, may have -inf and belongs to no ``policy_row``.
    """

    targets: torch.Tensor
    policy_row: torch.Tensor
    anchor_row: torch.Tensor
    rewards: torch.Tensor
    ref_logp: torch.Tensor | None = None
    old_logp: torch.Tensor | None = None

    def __post_init__(self) -> None:
        shape = self.targets.shape
        if len(shape) != 1:
            raise ValueError(f"targets: got shape {tuple(shape)}, want [T]")
        if self.rewards.dim() != 2:
            raise ValueError(f"rewards: got shape {tuple(self.rewards.shape)}, want [B, G]")
        for name in ("targets", "policy_row", "anchor_row"):
            if getattr(self, name).dtype != torch.int64:
                raise ValueError(f"{name}: got {getattr(self, name).dtype}, want torch.int64")
        for name in ("policy_row", "anchor_row", "ref_logp", "old_logp"):
            table = getattr(self, name)
            if table is not None and table.shape != shape:
                raise ValueError(f"{name}: got shape {tuple(table.shape)}, want {tuple(shape)}")
        self._check_rows("policy_row", self.rewards.numel(), "B·G")
        self._check_rows("anchor_row", self.anchor_rows, "T")

    def to(self, device: torch.device) -> "HybridBatch":
        """The batch on ``device``; the host does not wait for the copies."""
        return on_device(self, device)

    @property
    def anchor_rows(self) -> int:
        """At least the number of demonstrations; a device is not waited for to count them."""
        length = self.anchor_row.shape[0]
        if self.anchor_row.device.type != "cpu" or length == 0:
            return length
        return int(self.anchor_row.max()) + 1

    def _check_rows(self, name: str, end: int, meaning: str) -> None:
        rows = getattr(self, name)
        if rows.device.type != "cpu" or rows.numel() == 0:
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
    ) -> "HybridBatch":
        """The released code's layout: B·G right-padded rollout rows, then demonstration rows.

        Args:
            input_ids: [R, L] ids; row b·G + g is rollout g of prompt b.
            completion_mask: [B·G, C], 1 on completion tokens; column 0 is each row's prompt end.
            labels: [R, L]; -100 on rollout rows and on unlabelled tokens of demonstrations.
            rewards: [B, G].
            prompt_lengths: [B], tokens of each prompt.
            ref_logp: [B·G, L - 1]; column t scores id t + 1. ``old_logp`` likewise.

        Returns:
            A batch of T = R·L positions for hidden states [R, L, H].
        """
        rows, length = input_ids.shape
        rollouts = completion_mask.shape[0]
        _check_padded(input_ids, completion_mask, labels, rewards, prompt_lengths)
        labelled = torch.zeros_like(input_ids, dtype=torch.bool)
        labelled[rollouts:, :-1] = labels[rollouts:, 1:] != IGNORE_INDEX
        targets = torch.zeros_like(input_ids)
        targets[:, :-1] = torch.where(labelled[:, :-1], labels[:, 1:], input_ids[:, 1:])
        demonstration = torch.arange(rows, device=input_ids.device).unsqueeze(1) - rollouts
        logps = {"ref_logp": ref_logp, "old_logp": old_logp}
        return cls(
            targets=targets.reshape(-1),
            policy_row=_policy_rows(completion_mask, rewards, prompt_lengths, rows, length),
            anchor_row=torch.where(labelled, demonstration, -1).reshape(-1),
            rewards=rewards,
            **{name: _flat_logps(name, table, rollouts, rows) for name, table in logps.items()},
        )


def _check_padded(
    input_ids: torch.Tensor,
    completion_mask: torch.Tensor,
    labels: torch.Tensor,
    rewards: torch.Tensor,
    prompt_lengths: torch.Tensor,
) -> None:
    rows, rollouts = input_ids.shape[0], completion_mask.shape[0]
    if labels.shape != input_ids.shape:
        raise ValueError(f"labels: got {tuple(labels.shape)}, want {tuple(input_ids.shape)}")
    if rewards.numel() != rollouts or rollouts > rows:
        raise ValueError(
            f"completion_mask has {rollouts} rows, want B·G = {rewards.numel()} and at most "
            f"{rows}, the rows of input_ids"
        )
    if prompt_lengths.shape != rewards.shape[:1]:
        raise ValueError(
            f"prompt_lengths: got {tuple(prompt_lengths.shape)}, want [{rewards.shape[0]}]"
        )


def _policy_rows(
    completion_mask: torch.Tensor,
    rewards: torch.Tensor,
    prompt_lengths: torch.Tensor,
    rows: int,
    length: int,
) -> torch.Tensor:
    """Row of the rollout whose completion token each position predicts, [rows · length]."""
    device = completion_mask.device
    first = prompt_lengths.to(device).repeat_interleave(rewards.shape[1]).unsqueeze(1)  # [B·G, 1]
    position = first - 1 + torch.arange(completion_mask.shape[1], device=device)
    scored = completion_mask.to(torch.bool)
    outside = scored & ((position < 0) | (position >= length - 1))
    if device.type == "cpu" and bool(outside.any()):
        row, column = (int(i) for i in torch.nonzero(outside)[0])
        raise ValueError(
            f"completion_mask[{row}, {column}] is set, but prompt length {int(first[row])} + "
            f"{column} is outside the {length} columns of input_ids"
        )
    # What is not scored, or outside, goes to one more column, which is cut off. To list the scored
    # ones would be to wait for their number.
    slot = torch.where(scored & ~outside, position, length)
    own = torch.arange(len(scored), device=device).unsqueeze(1).expand_as(slot)
    table = torch.full((rows, length + 1), -1, dtype=torch.int64, device=device)
    table[: len(scored)].scatter_(1, slot, own)
    return table[:, :length].reshape(-1)


def _flat_logps(
    name: str, logps: torch.Tensor | None, rollouts: int, rows: int
) -> torch.Tensor | None:
    """[rollouts, L - 1] to [rows · L]; 0 where there is no score."""
    if logps is None:
        return None
    if logps.dim() != 2 or logps.shape[0] != rollouts:
        raise ValueError(f"{name}: got {tuple(logps.shape)}, want [{rollouts}, L - 1]")
    padded = logps.new_zeros((rows, logps.shape[1] + 1))
    padded[:rollouts, :-1] = logps
    return padded.reshape(-1)
