"""Recognises from the ids alone on which side rows are padded."""

import torch

from wavalign_fast.ops.inputs import can_be_read


def check_right_padded(
    ids: torch.Tensor, completion: torch.Tensor, first: torch.Tensor, group: int
) -> None:
    """Refuses, on the CPU, rows that are padded elsewhere than on the right, as far as ids show it.

    All rows are needed to see it. Right-padded rows have a single id after their completions, the
    padding. If they have several, the padding may be before the prompts, or between prompts and
    completions, and it then fills the rows up to one length. A single padding id could be a token
    like any other, so at least two are needed as evidence.

    Args:
        ids: [B·G, L] ids of the rollouts.
        completion: [B·G, C] bool, the completion tokens.
        first: [B·G, 1], the tokens of each row's prompt.
        group: G, rollouts of one prompt.

    Raises:
        ValueError: the rows are not right-padded and fit another way of padding.
    """
    if not can_be_read(ids) or ids.numel() == 0 or completion.shape[1] == 0:
        return
    column = torch.arange(ids.shape[1], device="cpu")
    filled = completion.any(1, keepdim=True)
    places = torch.arange(1, completion.shape[1] + 1, device="cpu")
    end = torch.where(completion, places, 0).amax(1, True)  # [B·G, 1] tokens of the completion
    behind = ids[filled & (column >= first + end)]
    if len(behind.unique()) <= 1:  # right-padded, or without any padding
        return
    rows = _Rows(ids, first, end, filled, group)
    shortest = int(first.argmin())
    padding = ids[shortest, 0]
    run = (ids == padding).cumprod(1).sum(1, keepdim=True)  # [B·G, 1] leading padding ids
    # A prompt may begin with the id that pads it, so a part of a run may belong to the prompt.
    ends = range(int(first.max()), int((run + first).min()) + 1)
    if rows.all_end_together(run) or any(rows.prompts_end_together(at, padding) for at in ends):
        row = int(run.argmax())
        raise ValueError(
            f"input_ids: row {row} begins with {int(run[row])} × id {int(padding)}, as if its "
            "prompt was left-padded, want right-padded rows or an attention_mask"
        )
    at = int(first.max())
    if at < ids.shape[1] and rows.completions_begin_together(at, ids[shortest, first[shortest]]):
        length = int(first[shortest])
        raise ValueError(
            f"prompt_lengths: got {length} for row {shortest} of input_ids, but what follows is "
            f"{at - length} × id {int(ids[shortest, length])}, as if all completions began at "
            f"column {at}, want right-padded rows or that column"
        )


class _Rows:
    """Rollouts [B·G, L] with their prompt lengths and completion lengths, [B·G, 1]."""

    def __init__(
        self,
        ids: torch.Tensor,
        first: torch.Tensor,
        end: torch.Tensor,
        filled: torch.Tensor,
        group: int,
    ) -> None:
        self.ids, self.first, self.end, self.filled = ids, first, end, filled
        self.column = torch.arange(ids.shape[1], device="cpu")
        grouped = ids.reshape(-1, group, ids.shape[1])
        self.shared = (grouped == grouped[:, :1]).all(1)[:, None].expand_as(grouped).reshape_as(ids)

    def all_end_together(self, run: torch.Tensor) -> bool:
        """Whether whole rows may be left-padded: the padding makes up for what each row lacks."""
        missing = self.ids.shape[1] - self.first - self.end
        return bool((run >= missing)[self.filled].all()) and int(missing[self.filled].sum()) > 1

    def prompts_end_together(self, at: int, padding: torch.Tensor) -> bool:
        """Whether the prompts may be left-padded so that all end before column ``at``."""
        prompt = (self.column >= self.first) & (self.column < at)
        filling = self._filling(at)
        signs = int((at - self.first).sum()) + int(filling.sum())
        fits = bool(self.shared[prompt].all()) and bool((self.ids[filling] == padding).all())
        return fits and signs > 1

    def completions_begin_together(self, at: int, padding: torch.Tensor) -> bool:
        """Whether prompts may be right-padded so that all completions begin in column ``at``."""
        between = (self.column >= self.first) & (self.column < at)
        filling = self._filling(at)
        signs = self.ids[between | filling]
        return bool(filling.any()) and len(signs) > 1 and bool((signs == padding).all())

    def _filling(self, at: int) -> torch.Tensor:
        """[B·G, L] bool, the cells after a completion that begins in column ``at``."""
        return self.filled & (self.column >= at + self.end)
