"""The WavAlign objective of a model with two heads, such as one for text and one for audio."""

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn

from wavalign_fast.losses.batch import HybridBatch
from wavalign_fast.losses.gate import MixingGate
from wavalign_fast.losses.hybrid import HybridObjective
from wavalign_fast.losses.layout import ModalityLayout
from wavalign_fast.losses.metric_names import with_released_names
from wavalign_fast.losses.normalisers import Normalisers
from wavalign_fast.losses.output import HybridOutput
from wavalign_fast.losses.weights import TokenWeights
from wavalign_fast.ops import LogitTransform, LossOptions
from wavalign_fast.ops.transfer import copied_to


class TwoHeads(NamedTuple):
    """The weights of two heads, each [V, H]."""

    first: torch.Tensor
    second: torch.Tensor


class HeadRows(NamedTuple):
    """The positions whose targets one head scores."""

    where: torch.Tensor
    """int64 [N], rising, on the device of the targets."""
    first_id: int
    """What is subtracted from their targets for the head's own rows."""


def rows_of_heads(targets: torch.Tensor, used: torch.Tensor, rows: int) -> tuple[HeadRows, ...]:
    """Returns which positions each head scores; a position that is not ``used`` is in neither.

    Args:
        targets: int64 [T]; ids in [0, V) are the first head's, those in [V, 2V) the second's.
        used: bool [T].
        rows: V, of each head.
    """
    second = targets >= rows
    return tuple(
        HeadRows((used & (second == bool(number))).nonzero()[:, 0], number * rows)
        for number in range(2)
    )


class TwoHeadObjective(nn.Module):
    """The sum of ``HybridObjective`` over two heads, with one λ and one set of denominators.

    An id below V is scored by the first head, one from V on by the second, as its id minus V. Each
    head has its own softmax over V ids. The advantages, λ and the denominators are those of the
    whole step: a rollout counts once, a demonstration once if either head has a label in it. The
    token mean of a row is taken for each head, and the two are added; with
    ``normalisation="token"`` the tokens of both heads count alike.

    Each head is one call of the fused loss over its own rows, so that no head is multiplied with a
    hidden state of the other stream. (One call over ``[h, 0]`` and ``[0, h]`` and the heads side by
    side has the same value, and twice the products.)

    Args:
        layout: the class of each id, at least those of [0, 2V).
        rows: V, the rows of each head.
        gate, options, settings: those of ``HybridObjective``.

    Raises:
        ValueError: an option outside its range, or ratios of whole rollouts, whose tokens the two
            heads share.
    """

    def __init__(
        self,
        layout: ModalityLayout,
        rows: int,
        *,
        gate: MixingGate | float | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        if settings.get("importance_sampling_level", "token") != "token":
            raise ValueError(
                "importance_sampling_level: 'sequence' given for two heads, want 'token': a ratio "
                "of a whole rollout needs the log-probs of both heads at once"
            )
        self.rows = rows
        self.joint = HybridObjective(layout, gate=gate, **settings)
        self.heads = nn.ModuleList(
            HybridObjective(_layout_of(layout, number * rows, rows), gate=0.0, **settings)
            for number in range(2)
        )

    @property
    def gate(self) -> MixingGate | float:
        """The gate, or the constant λ."""
        return self.joint.gate

    @property
    def options(self) -> LossOptions | None:
        """The backend and its limits."""
        return self.joint.options

    def token_weights(self, batch: HybridBatch) -> TokenWeights:
        """As ``HybridObjective.token_weights``, of the ids of both heads."""
        return self.joint.token_weights(batch)

    def normalisers(self, batch: HybridBatch) -> Normalisers:
        """As ``HybridObjective.normalisers``, of the ids of both heads."""
        return self.joint.normalisers(batch)

    def reward_metrics(self, rewards: torch.Tensor) -> dict[str, torch.Tensor]:
        """As ``HybridObjective.reward_metrics``."""
        return self.joint.reward_metrics(rewards)

    def forward(
        self,
        hidden: torch.Tensor,
        weight: TwoHeads,
        batch: HybridBatch,
        *,
        bias: None = None,
        rl_weight: torch.Tensor | float,
        normalisers: Normalisers | None = None,
        transform: LogitTransform | None = None,
    ) -> HybridOutput:
        """Computes the loss of a step, or of a part of one.

        Args:
            hidden: [T, H]; row t is the hidden state, of its own stream, that predicts
                ``batch.targets[t]``.
            weight: both heads; one with an adapter may have another dtype than ``hidden``.
            batch: the tables, with ids of both heads among the targets; on the CPU, or a copy to it
                waits for the device.
            bias: ``None``: no such model has heads with a bias.
            rl_weight: λ; ``self.gate`` moves where it is called.
            normalisers, transform: as for ``HybridObjective``; the transform is that of both heads.

        Returns:
            The sums of both heads' losses and totals; the metrics are the means of the totals.

        Raises:
            ValueError: as ``HybridObjective``.
        """
        by = self.normalisers(batch) if normalisers is None else normalisers
        used = (batch.policy_row >= 0) | (batch.anchor_row >= 0)
        outputs, places = [], []
        for objective, head, own in zip(
            self.heads, weight, rows_of_heads(batch.targets, used, self.rows), strict=True
        ):
            places.append(copied_to(own.where, hidden.device))
            outputs.append(
                objective(
                    hidden.index_select(0, places[-1]).to(head.dtype),
                    head,
                    _part(batch, own),
                    rl_weight=rl_weight,
                    normalisers=by,
                    transform=transform,
                )
            )
        return _added(outputs, places, len(batch.targets))


def _layout_of(layout: ModalityLayout, first: int, count: int) -> ModalityLayout:
    """Returns the classes of ``count`` ids from ``first`` on, which is id 0 there."""
    end = first + count
    ranges = [(max(low, first), min(high, end)) for low, high in layout.speech]
    return ModalityLayout(
        vocab_size=count,
        speech=[(low - first, high - first) for low, high in ranges if low < high],
        boundary=[i - first for i in layout.boundary if first <= i < end],
        boundary_as=layout.boundary_as,
        eos=[i - first for i in layout.eos if first <= i < end],
        eos_as=layout.eos_as,
    )


def _part(batch: HybridBatch, own: HeadRows) -> HybridBatch:
    """Returns the tables of one head's positions."""
    tables = {
        name: table if table is None else table[copied_to(own.where, table.device)]
        for name in ("ref_logp", "old_logp", "importance")
        for table in (getattr(batch, name),)
    }
    return replace(
        batch,
        targets=batch.targets[own.where] - own.first_id,
        policy_row=batch.policy_row[own.where],
        anchor_row=batch.anchor_row[own.where],
        **tables,
    )


def _added(outputs: list[HybridOutput], places: list[torch.Tensor], positions: int) -> HybridOutput:
    first, second = outputs
    logp = first.logp.new_zeros(positions)
    for output, where in zip(outputs, places, strict=True):
        logp[where] = output.logp
    totals = first.totals + second.totals
    rl_weight = first.rl_weight
    mixture = with_released_names({"rl_weight": rl_weight, "anchor_weight": 1.0 - rl_weight})
    return HybridOutput(
        loss=first.loss + second.loss,
        policy_loss=first.policy_loss + second.policy_loss,
        anchor_loss=first.anchor_loss + second.anchor_loss,
        kl_loss=first.kl_loss + second.kl_loss,
        rl_weight=rl_weight,
        logp=logp,
        metrics=totals.means() | mixture,
        totals=totals,
    )
