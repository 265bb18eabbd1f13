"""Cuts the prompts and answers of a step to rows, and lays rows out as blocks with flat tables."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wavalign_fast.data.records import Completion, Demonstration
from wavalign_fast.errors import UserError
from wavalign_fast.losses import HybridBatch
from wavalign_fast.models import PackedRows

NOT_IN_A_ROW = -1


@dataclass(frozen=True)
class LossIds:
    """Which ids carry loss in completions and in demonstrations: one bool per id."""

    policy: Sequence[bool]
    anchor: Sequence[bool]
    forced: int | None = None
    """Stands in answers where nobody chose an id; it is in no term."""


@dataclass(frozen=True)
class Row:
    """A prompt and its answer, cut after the last id that carries loss.

    In a causal model later ids have no effect on the loss.
    """

    index: int
    """Counts the completions of the step, or its demonstrations."""
    is_rollout: bool
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    history: tuple[int, ...] = ()
    """Positions of the prompt whose ids are learnt too, each at least 1."""
    forced: int | None = None
    """Stands in the answer where nobody chose an id."""

    @property
    def chosen(self) -> Sequence[int]:
        """The places of the answer whose ids somebody chose."""
        if self.forced is None:
            return range(len(self.answer))
        return [place for place, token in enumerate(self.answer) if token != self.forced]

    @property
    def learnt(self) -> tuple[int, ...]:
        """The ids that may carry loss: those of the history, then the answer's."""
        answer = (self.answer[place] for place in self.chosen)
        return (*(self.prompt[place] for place in self.history), *answer)

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer) - 1  # the last id is a target only


@dataclass(frozen=True)
class RowTables:
    """One entry per position: which id it predicts, and which row that id belongs to.

    Position t of a row predicts id t+1. A position belongs to row r of the policy (anchor) term if
    the id it predicts is part of completion (answer) r, or of answers before it that are learnt
    too. The rest of prompts, ids that nobody chose, and padding belong to no row.
    """

    targets: Tensor
    """int64 [T]; 0 at positions that belong to no row."""
    policy_row: Tensor
    """int64 [T], index of the completion or -1."""
    anchor_row: Tensor
    """int64 [T], index of the demonstration or -1."""

    def batch(self, rewards: Tensor, **constants: Tensor | None) -> HybridBatch:
        """The loss's tables; ``rewards`` are the whole step's, which the advantages need."""
        return HybridBatch(self.targets, self.policy_row, self.anchor_row, rewards, **constants)


@dataclass(frozen=True)
class TokenBlock:
    """Rows of one kind in one block, with the tables of its positions."""

    ids: Tensor | PackedRows
    """int64 [R, L], right-padded, with T = R·L positions; or packed rows with T positions."""
    tables: RowTables
    is_rollout: bool
    """Whether the rows are completions. False for demonstrations and for the idle block."""


def step_rows(
    completions: Sequence[Completion],
    demonstrations: Sequence[Demonstration],
    *,
    loss_ids: LossIds,
    skipped: Collection[int] = (),
    vectors: int = 0,
) -> list[Row]:
    """Returns the rows of a step: completions, then demonstrations; those without loss left out.

    Args:
        skipped: indices of completions to leave out; the others keep their indices.
        vectors: how many ids behind the vocabulary prompts may hold.

    Raises:
        UserError: an empty prompt, or an id outside the layout.
    """
    sampled = [(done.example.prompt_ids, done.ids) for done in completions]
    shown = [(pair.prompt_ids, pair.answer_ids) for pair in demonstrations]
    histories = [pair.history for pair in demonstrations]
    cut = cut_rows(
        "rollout",
        sampled,
        loss_ids.policy,
        is_rollout=True,
        vectors=vectors,
        forced=loss_ids.forced,
    )
    rows = [row for row in cut if row.index not in skipped]
    demonstrated = cut_rows(
        "demonstration",
        shown,
        loss_ids.anchor,
        is_rollout=False,
        vectors=vectors,
        histories=histories,
        forced=loss_ids.forced,
    )
    return rows + list(demonstrated)


def count_tables(rows: Sequence[Row]) -> RowTables:
    """Returns the tables of what all ``rows`` may learn, without other positions.

    They are what the denominators of the loss are counted from.
    """
    learnt = [(row, token) for row in rows for token in row.learnt]
    targets = [token for _, token in learnt]
    index = torch.tensor([row.index for row, _ in learnt], dtype=torch.int64)
    is_rollout = torch.tensor([row.is_rollout for row, _ in learnt]).bool()
    return RowTables(
        targets=torch.tensor(targets, dtype=torch.int64),
        policy_row=index.where(is_rollout, NOT_IN_A_ROW),
        anchor_row=index.where(~is_rollout, NOT_IN_A_ROW),
    )


def lay_out(rows: Sequence[Row], pad_id: int, *, packed: bool = False) -> TokenBlock:
    """Lays rows of one kind out as a block; without rows it is the idle block.

    The idle block is one padding token that counts nowhere. A rank without work runs it, so that
    its layers take part in every gather and reduction.

    Args:
        packed: put the rows one after another without padding, for an attention that keeps them
            apart, instead of padding them to one length.
    """
    idle = (torch.tensor([pad_id]), torch.tensor([0]), torch.tensor([NOT_IN_A_ROW]))
    ids, targets, row_of = zip(*(map(_positions, rows) if rows else [idle]), strict=True)
    if packed:
        block: Tensor | PackedRows = PackedRows.of(ids)
        flat_targets, flat_rows = torch.cat(targets), torch.cat(row_of)
    else:
        block = _padded(ids, pad_id)
        flat_targets, flat_rows = (
            _padded(targets, 0).flatten(),
            _padded(row_of, NOT_IN_A_ROW).flatten(),
        )
    no_row = torch.full_like(flat_rows, NOT_IN_A_ROW)
    is_rollout = bool(rows) and rows[0].is_rollout
    tables = RowTables(
        targets=flat_targets,
        policy_row=flat_rows if is_rollout else no_row,
        anchor_row=no_row if is_rollout else flat_rows,
    )
    return TokenBlock(block, tables, is_rollout)


def _positions(row: Row) -> tuple[Tensor, Tensor, Tensor]:
    """Returns ids, targets and row index of each position of a row, each int64 [L]."""
    tokens = torch.tensor(row.prompt + row.answer)
    targets = tokens[1:].clone()
    row_of = torch.full_like(targets, row.index)
    other = torch.arange(len(targets)) < len(row.prompt) - 1
    other[[place - 1 for place in row.history]] = False
    if row.forced is not None:
        other |= tokens[1:] == row.forced
    targets[other] = 0
    row_of[other] = NOT_IN_A_ROW
    return tokens[:-1], targets, row_of


def _padded(rows: Sequence[Tensor], value: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)


def cut_rows(
    kind: str,
    pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...]]],
    carries_loss: Sequence[bool],
    *,
    is_rollout: bool,
    vectors: int = 0,
    histories: Sequence[tuple[int, ...]] | None = None,
    forced: int | None = None,
) -> Iterator[Row]:
    """Yields (prompt, answer) as rows, without those that have no id that carries loss.

    Args:
        kind: what an error calls them.
        carries_loss: one bool per id.
        vectors: how many ids behind the vocabulary prompts may hold.
        histories: positions of each prompt whose ids are learnt too; none by default.
        forced: the id that stands where nobody chose one; it carries no loss.

    Raises:
        UserError: an empty prompt, or an id outside the layout.
    """
    for index, (prompt, answer) in enumerate(pairs):
        _check(f"{kind} {index}", prompt, answer, vocab_size=len(carries_loss), vectors=vectors)
        end = max(
            (place for place, token in enumerate(answer, 1) if carries_loss[token]), default=0
        )
        history = histories[index] if histories is not None else ()
        if end or any(carries_loss[prompt[place]] for place in history):
            yield Row(index, is_rollout, prompt, answer[:end], history, forced)


def _check(
    what: str, prompt: Sequence[int], answer: Sequence[int], *, vocab_size: int, vectors: int
) -> None:
    if not prompt:
        raise UserError(f"{what}: empty prompt, wanted at least one id")
    for place, token in enumerate((*prompt, *answer)):
        end = vocab_size + vectors if place < len(prompt) else vocab_size
        if not 0 <= token < end:
            raise UserError(
                f"{what}: id {token} at position {place}, wanted 0 <= id < {end} as in the layout"
            )
