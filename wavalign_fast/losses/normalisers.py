"""What the terms of the objective are divided by."""

from dataclasses import dataclass
from typing import Any, Literal

import torch

from wavalign_fast.losses.batch import HybridBatch
from wavalign_fast.losses.checks import check_normaliser
from wavalign_fast.losses.segments import segments_with_weight
from wavalign_fast.losses.weights import TokenWeights

Normalisation = Literal["sequence", "token"]


@dataclass(frozen=True, eq=False)
class Normalisers:
    """Denominators of the policy term, the anchor and the KL term, each a number or 0-d.

    ``HybridObjective.normalisers`` counts them for one batch; ``+`` and ``sum`` add batches up.
    Divided by their sum, micro-batches accumulate the gradient of the whole step::

        total = sum(objective.normalisers(batch) for batch in batches)
        rl_weight = objective.gate(torch.cat([batch.rewards for batch in batches]))
        for hidden, batch in ...:
            objective(hidden, weight, batch, rl_weight=rl_weight, normalisers=total).loss.backward()

    Over ranks the counts are the whole step's too, and each loss is then its part of the step's.
    Where gradients are *summed* over ranks, nothing is divided by the number of ranks. A wrapper
    that averages them (DDP, FSDP by default) divides by it, so divide the counts by it too::

        counts = torch.stack([total.policy, total.anchor, total.kl, total.rollouts])
        torch.distributed.all_reduce(counts)
        total = wf.Normalisers(*(counts / torch.distributed.get_world_size()))

    A tensor of 0 divides by 1: it counted nothing, so the sum is 0 anyway.

    Args:
        policy: of the policy term: rollouts, or the summed weights of their tokens.
        anchor: of the anchor: demonstrations with a label in scope, or the summed weights of their
            tokens.
        kl: of the KL term of ``kl_scope="completion"``: rollouts, or their tokens.
        rollouts: of metrics that are means over rollouts, in ``HybridOutput.totals``; ``None``
            takes those of the batch.

    Raises:
        ValueError: a number that is not above 0, a tensor that is not 0-d; on the CPU also a tensor
            that is negative or not finite.
    """

    policy: torch.Tensor | float
    anchor: torch.Tensor | float
    kl: torch.Tensor | float
    rollouts: torch.Tensor | float | None = None

    def __post_init__(self) -> None:
        for name in ("policy", "anchor", "kl", "rollouts"):
            if name != "rollouts" or self.rollouts is not None:
                check_normaliser(f"normalisers.{name}", getattr(self, name))

    def __add__(self, other: "Normalisers") -> "Normalisers":
        if not isinstance(other, Normalisers):
            return NotImplemented
        return Normalisers(
            self.policy + other.policy,
            self.anchor + other.anchor,
            self.kl + other.kl,
            None
            if self.rollouts is None or other.rollouts is None
            else self.rollouts + other.rollouts,
        )

    def __radd__(self, other: Any) -> "Normalisers":
        # `sum` starts with 0.
        return self if isinstance(other, int) and other == 0 else NotImplemented

    @classmethod
    def of(
        cls, batch: HybridBatch, weights: TokenWeights, normalisation: Normalisation
    ) -> "Normalisers":
        """The counts of ``batch``, float64 on its device, without a host sync."""
        rollouts = weights.policy.new_full((), batch.rollouts)
        if normalisation == "token":
            completion = weights.completion.sum().double()
            return cls(weights.policy.sum(), weights.anchor.sum(), completion, rollouts)
        anchors = segments_with_weight(weights.anchor, batch.anchor_row, batch.anchor_rows)
        return cls(rollouts, anchors.double(), rollouts, rollouts)


def normalised(total: torch.Tensor, by: torch.Tensor | float) -> torch.Tensor:
    """``total / by``, where a tensor of 0 divides by 1."""
    if isinstance(by, torch.Tensor):
        by = by.detach().to(total)
        by = torch.where(by == 0, 1.0, by)
    return total / by
