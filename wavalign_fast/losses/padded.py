"""Turns padded rows of rollouts and demonstrations into the flat tables of ``HybridBatch``."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from wavalign_fast.errors import shown
from wavalign_fast.losses.padding_side import check_right_padded
from wavalign_fast.ops import IGNORE_INDEX
from wavalign_fast.ops.inputs import (
    can_be_read,
    check_device,
    check_integers,
    check_tensor,
    whole_number,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class PaddedRows:
    """R checked rows of L ids, the first B·G of them rollouts."""

    input_ids: torch.Tensor
    """[R, L] int64."""
    labels: torch.Tensor
    """[R, L] int64."""
    completion: torch.Tensor
    """[B·G, C] bool, the completion tokens, from column ``first`` of a row on."""
    first: torch.Tensor
    """[B·G, 1] int64, the column of each row's first completion token."""

    @classmethod
    def of(
        cls,
        input_ids: torch.Tensor,
        completion_mask: torch.Tensor,
        labels: torch.Tensor,
        of_rollouts: torch.Tensor,
        prompt_lengths: Any,
        attention_mask: torch.Tensor | None,
    ) -> "PaddedRows":
        """The rows of ``HybridBatch.from_padded``, after a check of its arguments.

        Args:
            of_rollouts: [B, G], rewards or advantages; only the shape counts.
        """
        for name, ids in (("input_ids", input_ids), ("labels", labels)):
            _check_table(name, ids, "[R, L]")
            check_integers(name, ids)
        _check_table("completion_mask", completion_mask, "[B·G, C]")
        if labels.shape != input_ids.shape:
            raise ValueError(f"labels: got {tuple(labels.shape)}, want {tuple(input_ids.shape)}")
        rows, rollouts = len(input_ids), len(completion_mask)
        if of_rollouts.numel() != rollouts or rollouts > rows:
            raise ValueError(
                f"completion_mask has {rollouts} rows, want B·G = {of_rollouts.numel()} of rewards "
                f"{tuple(of_rollouts.shape)} and at most {rows}, the rows of input_ids"
            )
        device = input_ids.device
        check_device("labels", labels, device, "input_ids are")
        check_device("completion_mask", completion_mask, device, "input_ids are")
        lengths = _prompt_lengths(prompt_lengths, len(of_rollouts), input_ids)
        first = lengths.repeat_interleave(of_rollouts.shape[1]).unsqueeze(1)
        _check_ones("completion_mask", completion_mask)
        completion = completion_mask.to(torch.bool)
        left = torch.zeros_like(first)
        if attention_mask is not None:
            left = _padding_on_the_left(attention_mask, input_ids, rollouts)
        _check_within(completion, first, left, input_ids.shape[1])
        first = first + left
        if attention_mask is not None:
            _check_attended(attention_mask[:rollouts], completion, first)
        # A mask of ones says nothing: tokenizers return one for rows that are not padded.
        if attention_mask is None or (can_be_read(left) and bool(attention_mask[:rollouts].all())):
            check_right_padded(input_ids[:rollouts], completion, first, of_rollouts.shape[1])
        return cls(
            input_ids=input_ids.to(torch.int64),
            labels=labels.to(torch.int64),
            completion=completion,
            first=first,
        )

    def targets(self) -> torch.Tensor:
        """[R·L] int64; position t predicts id t + 1."""
        targets = torch.zeros_like(self.input_ids)
        labelled = self._labelled
        targets[:, :-1] = torch.where(labelled[:, :-1], self.labels[:, 1:], self.input_ids[:, 1:])
        return targets.reshape(-1)

    def policy_row(self) -> torch.Tensor:
        """[R·L] int64, the rollout whose completion token each position predicts, or -1."""
        rows, length = self.input_ids.shape
        position = _predicting(self.completion, self.first)
        # All other entries go to an extra column, which is cut off: listing the completion's alone
        # would wait for the device to count them.
        slot = torch.where(self.completion & _inside(position, length), position, length)
        own = torch.arange(len(self.completion), device=slot.device).unsqueeze(1).expand_as(slot)
        table = torch.full((rows, length + 1), -1, dtype=torch.int64, device=slot.device)
        table[: len(self.completion)].scatter_(1, slot, own)
        return table[:, :length].reshape(-1)

    def anchor_row(self) -> torch.Tensor:
        """[R·L] int64, the demonstration whose label each position predicts, or -1."""
        rows = torch.arange(len(self.input_ids), device=self.input_ids.device).unsqueeze(1)
        return torch.where(self._labelled, rows - len(self.completion), -1).reshape(-1)

    def flat_logps(self, name: str, logps: torch.Tensor | None) -> torch.Tensor | None:
        """[B·G, L - 1] as [R·L], 0 elsewhere."""
        if logps is None:
            return None
        check_tensor(name, logps)
        rows, length = self.input_ids.shape
        wanted = (len(self.completion), length - 1)
        if logps.shape != wanted:
            raise ValueError(
                f"{name}: got shape {tuple(logps.shape)}, want [B·G, L - 1] = {wanted}: column t "
                "scores id t + 1"
            )
        table = logps.new_zeros((rows, length))
        table[: wanted[0], :-1] = logps
        return table.reshape(-1)

    @cached_property
    def _labelled(self) -> torch.Tensor:
        labelled = torch.zeros_like(self.input_ids, dtype=torch.bool)
        rollouts = len(self.completion)
        labelled[rollouts:, :-1] = self.labels[rollouts:, 1:] != IGNORE_INDEX
        return labelled


def _check_table(name: str, table: Any, meaning: str) -> None:
    check_tensor(name, table)
    if table.dim() != 2:
        raise ValueError(f"{name}: got shape {tuple(table.shape)}, want {meaning}")


def _prompt_lengths(lengths: Any, prompts: int, input_ids: torch.Tensor) -> torch.Tensor:
    """[B] int64 beside ``input_ids`` [R, L], from a tensor or a list."""
    if not isinstance(lengths, torch.Tensor):
        try:
            lengths = torch.tensor(
                [whole_number("one", n, low=None) for n in lengths], dtype=torch.int64, device="cpu"
            )
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(
                f"prompt_lengths: got {shown(lengths)}, want whole numbers [{prompts}]"
            ) from error
    check_tensor("prompt_lengths", lengths)
    check_integers("prompt_lengths", lengths)
    if lengths.shape != (prompts,):
        raise ValueError(
            f"prompt_lengths: got {tuple(lengths.shape)}, want [{prompts}], one for each row of "
            "rewards, or for each of the advantages"
        )
    if lengths.device.type == "meta":
        check_device("prompt_lengths", lengths, input_ids.device, "input_ids are")
    if can_be_read(lengths):
        bad = torch.nonzero((lengths < 0) | (lengths > input_ids.shape[1]))
        if bad.numel() > 0:
            at = int(bad[0, 0])
            raise ValueError(
                f"prompt_lengths[{at}]: got {int(lengths[at])}, want 0 <= length <= "
                f"{input_ids.shape[1]}, the columns of input_ids"
            )
    return lengths.to(input_ids.device, torch.int64)


def _check_ones(name: str, mask: torch.Tensor) -> None:
    """Refuses, on the CPU, a mask of anything but 0 and 1, such as ids, weights or -inf."""
    if not can_be_read(mask):
        return
    bad = torch.nonzero((mask != 0) & (mask != 1))
    if bad.numel() > 0:
        row, column = (int(i) for i in bad[0])
        raise ValueError(f"{name}[{row}, {column}]: got {mask[row, column].item()}, want 0 or 1")


def _padding_on_the_left(
    attention_mask: Any, input_ids: torch.Tensor, rollouts: int
) -> torch.Tensor:
    """[B·G, 1] int64, the columns of padding before each rollout's first token."""
    check_tensor("attention_mask", attention_mask)
    check_device("attention_mask", attention_mask, input_ids.device, "input_ids are")
    allowed = [tuple(input_ids.shape), (rollouts, input_ids.shape[1])]
    if tuple(attention_mask.shape) not in allowed:
        raise ValueError(
            f"attention_mask: got shape {tuple(attention_mask.shape)}, want {allowed[0]}, that of "
            "input_ids"
        )
    _check_ones("attention_mask", attention_mask)
    attended = attention_mask[:rollouts] != 0
    # All columns before the first that is attended; of a row without one, all columns.
    return (attended.cumsum(1) == 0).sum(1, keepdim=True)


def _predicting(completion: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    """[B·G, C] the position that predicts each token of ``completion``."""
    return first - 1 + torch.arange(completion.shape[1], device=completion.device)


def _inside(position: torch.Tensor, length: int) -> torch.Tensor:
    """Whether a row of ``length`` ids has both the position and the id that it predicts."""
    return (position >= 0) & (position < length - 1)


def _check_within(
    completion: torch.Tensor, first: torch.Tensor, left: torch.Tensor, length: int
) -> None:
    """Refuses, on the CPU, completion tokens outside the row, or in its first column."""
    outside = completion & ~_inside(_predicting(completion, first + left), length)
    if can_be_read(completion) and bool(outside.any()):
        row, column = (int(i) for i in torch.nonzero(outside)[0])
        padding = ""
        if left[row] > 0:
            padding = f"{int(left[row])} (columns that attention_mask leaves out) + "
        raise ValueError(
            f"completion_mask[{row}, {column}] is set, but prompt end {padding}{int(first[row])} + "
            f"{column} is outside the {length} columns of input_ids, or the first of them"
        )


def _check_attended(
    attention_mask: torch.Tensor, completion: torch.Tensor, first: torch.Tensor
) -> None:
    """Refuses, on the CPU, completion tokens that the attention mask says are padding."""
    if not can_be_read(completion) or completion.numel() == 0:
        return
    column = first + torch.arange(completion.shape[1], device="cpu")
    attended = attention_mask.gather(1, column.clamp(max=attention_mask.shape[1] - 1)) != 0
    bad = torch.nonzero(completion & ~attended)
    if bad.numel() > 0:
        row, at = (int(i) for i in bad[0])
        raise ValueError(
            f"completion_mask[{row}, {at}] is set, but attention_mask[{row}, "
            f"{int(first[row]) + at}] is 0: column 0 of completion_mask is where the prompt ends"
        )
