"""Padded rows of rollouts and demonstrations, read as the flat tables of ``HybridBatch``."""

from dataclasses import dataclass
from typing import Any

import torch

from wavalign_fast.ops import IGNORE_INDEX
from wavalign_fast.ops.inputs import can_be_read, check_tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class PaddedRows:
    """R rows of L ids, the first B·G of them rollouts, after all checks."""

    input_ids: torch.Tensor
    """[R, L] int64."""
    labels: torch.Tensor
    """[R, L] int64."""
    scored: torch.Tensor
    """[B·G, C] bool, the completion tokens."""
    first: torch.Tensor
    """[B·G, 1] column of each row's first completion token."""
    rewards: torch.Tensor
    """[B, G]"""

    @classmethod
    def of(
        cls,
        input_ids: torch.Tensor,
        completion_mask: torch.Tensor,
        labels: torch.Tensor,
        rewards: torch.Tensor,
        prompt_lengths: Any,
        attention_mask: torch.Tensor | None,
    ) -> "PaddedRows":
        """The arguments of ``HybridBatch.from_padded``."""
        for name, ids in (("input_ids", input_ids), ("labels", labels)):
            _check_table(name, ids, "[R, L]")
            if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
                raise ValueError(f"{name}: got {ids.dtype}, want an integer dtype")
        _check_table("completion_mask", completion_mask, "[B·G, C]")
        if labels.shape != input_ids.shape:
            raise ValueError(f"labels: got {tuple(labels.shape)}, want {tuple(input_ids.shape)}")
        rows, rollouts = len(input_ids), len(completion_mask)
        if rewards.numel() != rollouts or rollouts > rows:
            raise ValueError(
                f"completion_mask has {rollouts} rows, want B·G = {rewards.numel()} of rewards "
                f"{tuple(rewards.shape)} and at most {rows}, the rows of input_ids"
            )
        device = input_ids.device
        _check_device("labels", labels, device)
        _check_device("completion_mask", completion_mask, device)
        lengths = _prompt_lengths(prompt_lengths, len(rewards), device)
        first = lengths.repeat_interleave(rewards.shape[1]).unsqueeze(1)
        _check_ones(completion_mask)
        scored = completion_mask.to(torch.bool)
        if attention_mask is not None:
            first = first + _padding_on_the_left(attention_mask, input_ids, rollouts)
        _check_within(scored, first, input_ids.shape[1])
        if attention_mask is not None:
            _check_attended(attention_mask[:rollouts], scored, first)
        else:
            _check_right_padded(input_ids[:rollouts], scored, first, rewards.shape[1])
        return cls(
            input_ids=input_ids.to(torch.int64),
            labels=labels.to(torch.int64),
            scored=scored,
            first=first,
            rewards=rewards,
        )

    def targets(self) -> torch.Tensor:
        """[R·L]; position t predicts id t + 1."""
        targets = torch.zeros_like(self.input_ids)
        labelled = self._labelled()
        targets[:, :-1] = torch.where(labelled[:, :-1], self.labels[:, 1:], self.input_ids[:, 1:])
        return targets.reshape(-1)

    def policy_row(self) -> torch.Tensor:
        """[R·L], row of the rollout whose completion token each position predicts, or -1."""
        rows, length = self.input_ids.shape
        position = _predicting(self.scored, self.first)
        # What is not scored, or outside, goes to one more column, which is cut off. To list the
        # scored ones would be to wait for their number.
        slot = torch.where(self.scored & _inside(position, length), position, length)
        own = torch.arange(len(self.scored), device=slot.device).unsqueeze(1).expand_as(slot)
        table = torch.full((rows, length + 1), -1, dtype=torch.int64, device=slot.device)
        table[: len(self.scored)].scatter_(1, slot, own)
        return table[:, :length].reshape(-1)

    def anchor_row(self) -> torch.Tensor:
        """[R·L], index of the demonstration whose label each position predicts, or -1."""
        rows = torch.arange(len(self.input_ids), device=self.input_ids.device).unsqueeze(1)
        return torch.where(self._labelled(), rows - len(self.scored), -1).reshape(-1)

    def flat_logps(self, name: str, logps: torch.Tensor | None) -> torch.Tensor | None:
        """[B·G, L - 1] to [R·L]; 0 where there is no score."""
        if logps is None:
            return None
        check_tensor(name, logps)
        rows, length = self.input_ids.shape
        wanted = (len(self.scored), length - 1)
        if logps.shape != wanted:
            raise ValueError(
                f"{name}: got shape {tuple(logps.shape)}, want [B·G, L - 1] = {wanted}: column t "
                "scores id t + 1"
            )
        table = logps.new_zeros((rows, length))
        table[: wanted[0], :-1] = logps
        return table.reshape(-1)

    def _labelled(self) -> torch.Tensor:
        labelled = torch.zeros_like(self.input_ids, dtype=torch.bool)
        rollouts = len(self.scored)
        labelled[rollouts:, :-1] = self.labels[rollouts:, 1:] != IGNORE_INDEX
        return labelled


def _check_table(name: str, table: Any, meaning: str) -> None:
    check_tensor(name, table)
    if table.dim() != 2:
        raise ValueError(f"{name}: got shape {tuple(table.shape)}, want {meaning}")


def _check_device(name: str, table: torch.Tensor, device: torch.device) -> None:
    if table.device != device:
        raise ValueError(
            f"{name}: got a tensor on {table.device}, want {device}, where input_ids are"
        )


def _prompt_lengths(lengths: Any, prompts: int, device: torch.device) -> torch.Tensor:
    """[B] int64 on ``device``, from a tensor or a list."""
    if not isinstance(lengths, torch.Tensor):
        try:
            lengths = torch.tensor(
                [int(n.__index__()) for n in lengths], dtype=torch.int64, device="cpu"
            )
        except (AttributeError, TypeError) as error:
            raise ValueError(
                f"prompt_lengths: got {lengths!r}, want whole numbers [{prompts}]"
            ) from error
    check_tensor("prompt_lengths", lengths)
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise ValueError(f"prompt_lengths: got {lengths.dtype}, want an integer dtype")
    if lengths.shape != (prompts,):
        raise ValueError(
            f"prompt_lengths: got {tuple(lengths.shape)}, want [{prompts}], one for each row of "
            "rewards"
        )
    return lengths.to(device, torch.int64)


def _check_ones(completion_mask: torch.Tensor) -> None:
    """Refuses, on the CPU, a mask with something else than 0 and 1: ids, say, or weights."""
    if not can_be_read(completion_mask):
        return
    bad = torch.nonzero((completion_mask != 0) & (completion_mask != 1))
    if bad.numel() > 0:
        row, column = (int(i) for i in bad[0])
        raise ValueError(
            f"completion_mask[{row}, {column}]: got {completion_mask[row, column].item()}, want 0 "
            "or 1"
        )


def _padding_on_the_left(
    attention_mask: Any, input_ids: torch.Tensor, rollouts: int
) -> torch.Tensor:
    """Columns [B·G, 1] before each rollout's first token."""
    check_tensor("attention_mask", attention_mask)
    _check_device("attention_mask", attention_mask, input_ids.device)
    allowed = [tuple(input_ids.shape), (rollouts, input_ids.shape[1])]
    if tuple(attention_mask.shape) not in allowed:
        raise ValueError(
            f"attention_mask: got shape {tuple(attention_mask.shape)}, want {allowed[0]}, that of "
            "input_ids"
        )
    seen = attention_mask[:rollouts] != 0
    # Columns up to the first one seen; of an empty row, all.
    return (seen.cumsum(1) == 0).sum(1, keepdim=True)


def _predicting(scored: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    """[B·G, C] position that predicts each token of ``scored``."""
    return first - 1 + torch.arange(scored.shape[1], device=scored.device)


def _inside(position: torch.Tensor, length: int) -> torch.Tensor:
    return (position >= 0) & (position < length - 1)


def _check_within(scored: torch.Tensor, first: torch.Tensor, length: int) -> None:
    outside = scored & ~_inside(_predicting(scored, first), length)
    if can_be_read(scored) and bool(outside.any()):
        row, column = (int(i) for i in torch.nonzero(outside)[0])
        raise ValueError(
            f"completion_mask[{row}, {column}] is set, but prompt end {int(first[row])} + "
            f"{column} is outside the {length} columns of input_ids"
        )


def _check_attended(
    attention_mask: torch.Tensor, scored: torch.Tensor, first: torch.Tensor
) -> None:
    """Refuses, on the CPU, completion tokens that are padding by the attention mask."""
    if not can_be_read(scored) or scored.numel() == 0:
        return
    column = first + torch.arange(scored.shape[1], device="cpu")
    attended = attention_mask.gather(1, column.clamp(max=attention_mask.shape[1] - 1)) != 0
    bad = torch.nonzero(scored & ~attended)
    if bad.numel() > 0:
        row, at = (int(i) for i in bad[0])
        raise ValueError(
            f"completion_mask[{row}, {at}] is set, but attention_mask[{row}, "
            f"{int(first[row]) + at}] is 0: column 0 of completion_mask is where the prompt ends"
        )


def _check_right_padded(
    ids: torch.Tensor, scored: torch.Tensor, first: torch.Tensor, group: int
) -> None:
    """Refuses, on the CPU, rollouts [B·G, L] that cannot be right-padded but can be left-padded.

    Ids alone say which is which only together. Behind right-padded completions stands one id, the
    padding. With left-padded prompts it stands in front of them, up to the same last column of all
    prompts; what follows is the same in all rows of a group up to that column; and it fills up the
    completions. One cell of all these could be chance, so two are asked for.
    """
    if not can_be_read(ids) or ids.numel() == 0:
        return
    column = torch.arange(ids.shape[1], device="cpu")
    filled = scored.any(1, keepdim=True)
    end = torch.where(scored, torch.arange(1, scored.shape[1] + 1, device="cpu"), 0).amax(1, True)
    behind = ids[filled & (column >= first + end)]
    if len(behind.unique()) <= 1:  # right-padded, or as good as
        return
    padding = ids[first.argmin(), 0]
    run = (ids == padding).cumprod(1).sum(1, keepdim=True)  # [B·G, 1]
    prompt_end = run + first
    by_group = ids.reshape(-1, group, ids.shape[1])
    shared = (by_group == by_group[:, :1]).all(1)[:, None].expand_as(by_group).reshape(ids.shape)
    said_by_prompt = (column >= first) & (column < prompt_end)
    filling = filled & (column >= prompt_end + end)
    left_padded = (
        bool((prompt_end == prompt_end[0]).all())
        and bool(shared[said_by_prompt].all())
        and bool((ids[filling] == padding).all())
    )
    signs = int(run.sum()) + int(filling.sum())
    if left_padded and signs > 1:
        row = int(run.argmax())
        raise ValueError(
            f"input_ids: row {row} begins with {int(run[row])} × id {int(padding)}, as if its "
            "prompt was left-padded, want right-padded rows or an attention_mask"
        )
