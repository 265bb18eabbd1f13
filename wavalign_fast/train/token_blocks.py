"""Lays completions and demonstrations out in blocks of padded ids and in flat tables."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wavalign_fast.data.records import Completion, Demonstration
from wavalign_fast.errors import UserError

NOT_IN_A_ROW = -1


@dataclass(frozen=True)
class TokenBlocks:
    """Rows in blocks of similar length, and one entry of the flat tables per block position.

    Position t of a row predicts id t+1. A position belongs to row r of the policy (anchor) term if
    the id it predicts is part of completion (answer) r. Prompts and padding belong to no row.
    """

    blocks: list[Tensor]
    """int64 [R_b, L_b], right-padded; the blocks of completions come first."""
    rollout_blocks: int
    """Number of ``blocks`` with completions."""
    rollout_positions: int
    """Number of the T table entries that belong to those blocks."""
    targets: Tensor
    """int64 [T]; 0 at positions that belong to no row."""
    policy_row: Tensor
    """int64 [T], index of the completion or -1."""
    anchor_row: Tensor
    """int64 [T], index of the demonstration or -1."""


@dataclass(frozen=True)
class LossIds:
    """Which ids of the vocabulary carry loss, bool [V], in completions and in demonstrations."""

    policy: Tensor
    anchor: Tensor


@dataclass(frozen=True)
class _Row:
    """A prompt and its answer; ``index`` counts completions or demonstrations."""

    index: int
    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer) - 1  # the last id is a target only


def build_blocks(
    completions: Sequence[Completion],
    demonstrations: Sequence[Demonstration],
    *,
    pad_id: int,
    loss_ids: LossIds,
    block_tokens: int,
    skipped: Collection[int] = (),
) -> TokenBlocks:
    """Lays rows ``prompt + completion`` and ``prompt + answer`` out as ``TokenBlocks``.

    A row is cut after its last id that carries loss: in a causal model later ids have no effect.

    Args:
        block_tokens: a block is closed once it has this many positions, padding included.
        skipped: indices of completions to leave out; the others keep their indices.

    Raises:
        UserError: an empty prompt, or an id outside the layout.
    """
    sampled = [(done.example.prompt_ids, done.ids) for done in completions]
    shown = [(pair.prompt_ids, pair.answer_ids) for pair in demonstrations]
    policy_rows = _rows("rollout", sampled, loss_ids.policy)
    groups = _group_by_length(
        [row for row in policy_rows if row.index not in skipped], block_tokens
    )
    rollout_blocks = len(groups)
    groups += _group_by_length(_rows("demonstration", shown, loss_ids.anchor), block_tokens)
    laid_out = [_lay_out(rows, pad_id) for rows in groups]
    empty = torch.empty(0, dtype=torch.int64)
    targets = torch.cat([empty, *(targets for _, targets, _ in laid_out)])
    rows = torch.cat([empty, *(rows for _, _, rows in laid_out)])
    positions = sum(ids.numel() for ids, _, _ in laid_out[:rollout_blocks])
    is_rollout = torch.arange(len(rows)) < positions
    return TokenBlocks(
        blocks=[ids for ids, _, _ in laid_out],
        rollout_blocks=rollout_blocks,
        rollout_positions=positions,
        targets=targets,
        policy_row=rows.where(is_rollout, NOT_IN_A_ROW),
        anchor_row=rows.where(~is_rollout, NOT_IN_A_ROW),
    )


def _rows(
    kind: str, pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], has_loss: Tensor
) -> list[_Row]:
    """Returns the rows, cut after their last id with loss; rows without such an id are left out."""
    carries_loss = has_loss.tolist()
    rows = []
    for index, (prompt, answer) in enumerate(pairs):
        _check(f"{kind} {index}", prompt, answer, vocab_size=len(carries_loss))
        end = max(
            (place for place, token in enumerate(answer, 1) if carries_loss[token]), default=0
        )
        if end:
            rows.append(_Row(index, prompt, answer[:end]))
    return rows


def _group_by_length(rows: Sequence[_Row], block_tokens: int) -> list[list[_Row]]:
    """Groups rows by descending length, so that the rows of a block need little padding."""
    groups: list[list[_Row]] = []
    for row in sorted(rows, key=len, reverse=True):
        if not groups or len(groups[-1]) * len(groups[-1][0]) >= block_tokens:
            groups.append([])
        groups[-1].append(row)
    return groups


def _lay_out(rows: Sequence[_Row], pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns padded ids [R, L], and flat targets and row indices [R·L], of rows by length."""
    length = len(rows[0])
    padded = torch.tensor(
        [[*row.prompt, *row.answer, *[pad_id] * (length - len(row))] for row in rows]
    )
    first = torch.tensor([len(row.prompt) - 1 for row in rows])[:, None]
    end = torch.tensor([len(row) for row in rows])[:, None]
    index = torch.tensor([row.index for row in rows])[:, None]
    position = torch.arange(length)[None, :]
    predicts_answer = (position >= first) & (position < end)
    return (
        padded[:, :-1],
        padded[:, 1:].where(predicts_answer, 0).flatten(),
        index.where(predicts_answer, NOT_IN_A_ROW).flatten(),
    )


def _check(what: str, prompt: Sequence[int], answer: Sequence[int], *, vocab_size: int) -> None:
    if not prompt:
        raise UserError(f"{what}: empty prompt, wanted at least one id")
    for place, token in enumerate((*prompt, *answer)):
        if not 0 <= token < vocab_size:
            raise UserError(
                f"{what}: id {token} at position {place}, wanted 0 <= id < {vocab_size} "
                "as in the layout"
            )
