"""The loss of MTP layers on the demonstrations of a step."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from wavalign_fast.ops import IGNORE_INDEX
from wavalign_fast.train.policy import Policy
from wavalign_fast.train.token_blocks import Row, TokenBlock


class MtpLoss:
    """(weight / K) · Σ_k CE_k; CE_k is the mean of layer k over all demonstrations of the step.

    Every id that the anchor learns counts, text and speech alike, as in the families' own training.

    Args:
        head: computes sums of K layers from (model, embedded, hidden, targets), such as
            ``models.families.vita_mtp.MtpHead``.
        weight: the families' ``mtp_loss_weight``.
        learnt: one bool per id: whether the anchor learns it.
    """

    def __init__(self, head: nn.Module, *, weight: float, learnt: Sequence[bool]) -> None:
        self.head = head
        self.weight = weight
        self.learnt = torch.tensor(learnt)

    @property
    def layers(self) -> int:
        """K."""
        layers: nn.ModuleList = self.head.layers  # type: ignore[assignment]
        return len(layers)

    def counts(self, rows: Sequence[Row]) -> Tensor:
        """Returns how many ids each layer learns in ``rows``, float32 [K], at least 1."""
        counts = [0] * self.layers
        for row in rows:
            if row.is_rollout:
                continue
            ids = (*row.prompt, *row.answer)
            for place in (*row.history, *range(len(row.prompt), len(ids))):
                if self.learnt[ids[place]]:
                    # Layer k reads place − k − 2 and later ones.
                    for k in range(min(place - 1, self.layers)):
                        counts[k] += 1
        return torch.tensor(counts, dtype=torch.float32).clamp(min=1)

    def sums(self, policy: Policy, block: TokenBlock, hidden: Tensor) -> Tensor:
        """Returns −Σ log p of each layer over a block's demonstrations, float32 [K].

        Call it in the forward pass. A block without demonstrations runs the layers along, on one
        short row that counts nowhere, because FSDP2 gathers their weights on all ranks.

        Args:
            hidden: [T, H], of the positions of the block.
        """
        index, targets = self._rows(block)
        index, targets = index.to(hidden.device), targets.to(hidden.device)
        embedded = policy.embedded(block.ids)
        sums: Tensor = self.head(policy.model, embedded[index], hidden[index], targets)
        return sums

    def share(self, sums: Tensor, counts: Tensor, rl_weight: Tensor) -> Tensor:
        """Returns a micro-batch's part of the step's loss, with the weight of the anchor, 1 − λ."""
        mean = (sums / counts.to(sums.device)).mean()
        return (1 - rl_weight.to(sums.device)) * self.weight * mean

    def _rows(self, block: TokenBlock) -> tuple[Tensor, Tensor]:
        """Returns positions and targets of the rows, int64 [R, L], with L above K."""
        least, tables = self.layers + 1, block.tables
        learnt = (tables.anchor_row >= 0) & self.learnt[tables.targets]
        if not bool(learnt.any()):
            return torch.zeros(1, least).long(), torch.full((1, least), IGNORE_INDEX)
        targets = tables.targets.where(learnt, IGNORE_INDEX)
        positions = torch.arange(len(targets))
        if isinstance(block.ids, Tensor):
            index, wanted = positions.view(block.ids.shape), targets.view(block.ids.shape)
        else:
            lengths = block.ids.borders.diff().tolist()
            index = pad_sequence(list(positions.split(lengths)), batch_first=True)
            wanted = pad_sequence(
                list(targets.split(lengths)), batch_first=True, padding_value=IGNORE_INDEX
            )
        more = (0, max(least - index.shape[1], 0))
        return (
            nn.functional.pad(index, more),
            nn.functional.pad(wanted, more, value=IGNORE_INDEX),
        )
