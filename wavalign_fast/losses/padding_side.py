"""On which side rows of ids are padded, told from the ids alone."""

import torch

from wavalign_fast.ops.inputs import can_be_read


def check_right_padded(
    ids: torch.Tensor, completion: torch.Tensor, first: torch.Tensor, group: int
) -> None:
    """Refuses, on the CPU, rollouts [B·G, L] that cannot be right-padded but can be otherwise.

    Ids alone say which is which only together. Behind right-padded completions stands one id, the
    padding. Else it may stand in front of the rows, or between prompts and completions; it then
    fills up the rest as well. One cell of it could be chance, so two are asked for.

    Args:
        ids: [B·G, L].
        completion: [B·G, C] bool, the completion tokens.
        first: [B·G, 1], the tokens of each row's prompt.
        group: G.
    """
    if not can_be_read(ids) or ids.numel() == 0 or completion.shape[1] == 0:
        return
    column = torch.arange(ids.shape[1], device="cpu")
    filled = completion.any(1, keepdim=True)
    places = torch.arange(1, completion.shape[1] + 1, device="cpu")
    end = torch.where(completion, places, 0).amax(1, True)  # [B·G, 1] tokens of the completion
    behind = ids[filled & (column >= first + end)]
    if len(behind.unique()) <= 1:  # right-padded, or as good as
        return
    rows = _Rows(ids, first, end, filled, group)
    shortest = int(first.argmin())
    padding = ids[shortest, 0]
    run = (ids == padding).cumprod(1).sum(1, keepdim=True)  # [B·G, 1] padding in front
    # Prompts may begin with the very id that pads them, so not all of a run need be padding.
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
    """Rollouts [B·G, L] and what is known of each, [B·G, 1]."""

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
        """Whether whole rows can be padded on the left: as much as they are too short."""
        missing = self.ids.shape[1] - self.first - self.end
        return bool((run >= missing)[self.filled].all()) and int(missing[self.filled].sum()) > 1

    def prompts_end_together(self, at: int, padding: torch.Tensor) -> bool:
        """Whether all prompts can end before column ``at``, with ``padding`` in front of them."""
        prompt = (self.column >= self.first) & (self.column < at)
        filling = self._filling(at)
        signs = int((at - self.first).sum()) + int(filling.sum())
        fits = bool(self.shared[prompt].all()) and bool((self.ids[filling] == padding).all())
        return fits and signs > 1

    def completions_begin_together(self, at: int, padding: torch.Tensor) -> bool:
        """Whether there can be ``padding`` between prompts and column ``at``, and behind."""
        between = (self.column >= self.first) & (self.column < at)
        filling = self._filling(at)
        signs = self.ids[between | filling]
        return bool(filling.any()) and len(signs) > 1 and bool((signs == padding).all())

    def _filling(self, at: int) -> torch.Tensor:
        """Cells [B·G, L] behind completions that begin at column ``at``."""
        return self.filled & (self.column >= at + self.end)
