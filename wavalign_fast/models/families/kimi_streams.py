"""The two streams of Kimi-Audio's answers: what is forced, what is scored, and the loss's tables.

The loop of inference fills some positions in: blanks of the audio stream before the speech begins,
and blanks of the text stream after ``text_eos``. Forced ids are no decisions of the model, so no
log-prob of theirs is in any loss.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from wavalign_fast.errors import UserError
from wavalign_fast.losses.batch import HybridBatch
from wavalign_fast.losses.hybrid import HybridObjective
from wavalign_fast.losses.normalisers import Normalisers
from wavalign_fast.models.families.interface import IGNORE, FamilyLayout, Prompt, Target

DELAY = 6
"""Positions before the speech of an answer. Checkpoints say 5; the inference code has 6."""


class StreamRow(NamedTuple):
    """A row of two streams: its ids, and what is scored at each position, ``IGNORE`` for nothing.

    A label stands where its own id stands; the first position has none.
    """

    ids: list[int]
    labels: list[int]
    second_ids: list[int]
    second_labels: list[int]


class StreamBatches(NamedTuple):
    """The loss's tables of one step, one for each head; both have the same positions."""

    text: HybridBatch
    audio: HybridBatch


def decisions(
    layout: FamilyLayout, text: Sequence[int], audio: Sequence[int], *, speech: bool = True
) -> tuple[list[bool], list[bool]]:
    """Tells which ids of a sampled answer the model has chosen itself.

    Args:
        text, audio: the ids after the prompt, of the same length.
        speech: whether the answer was to be spoken; otherwise the whole audio stream is forced.

    Returns:
        A mask of the text, up to ``text_eos`` and with it, and one of the audio, from the sixth
        position on up to the id that ends the answer and with it.

    Raises:
        ValueError: the streams differ in length.
    """
    if len(text) != len(audio):
        raise ValueError(f"{len(text)} text ids and {len(audio)} audio ids, want as many of both")
    ended = _first(text, (layout.named["text_eos"],))
    over = DELAY + _first(audio[DELAY:], layout.stop) if speech else -1
    chosen = [place <= ended for place in range(len(text))]
    return chosen, [DELAY <= place <= over for place in range(len(audio))]


def _first(ids: Sequence[int], ends: Sequence[int]) -> int:
    """Returns the place of the first of ``ends``, or the length if there is none."""
    return next((place for place, index in enumerate(ids) if index in ends), len(ids))


def demonstration(prompt: Prompt, target: Target) -> StreamRow:
    """Returns the row of a demonstration; answers of history are not scored."""
    assert prompt.second_ids is not None and target.second_ids is not None
    assert target.second_labels is not None
    unscored = [IGNORE] * len(prompt.ids)
    return StreamRow(
        [*prompt.ids, *target.ids],
        [*unscored, *target.labels],
        [*prompt.second_ids, *target.second_ids],
        [*unscored, *target.second_labels],
    )


def rollout(
    layout: FamilyLayout,
    prompt: Prompt,
    text: Sequence[int],
    audio: Sequence[int],
    *,
    speech: bool = True,
) -> StreamRow:
    """Returns the row of a sampled answer, in which its decisions are scored."""
    assert prompt.second_ids is not None
    unscored = [IGNORE] * len(prompt.ids)
    chosen = decisions(layout, text, audio, speech=speech)
    labels, second_labels = (
        [index if own else IGNORE for index, own in zip(ids, mask, strict=True)]
        for ids, mask in zip((text, audio), chosen, strict=True)
    )
    return StreamRow(
        [*prompt.ids, *text],
        [*unscored, *labels],
        [*prompt.second_ids, *audio],
        [*unscored, *second_labels],
    )


def stream_batches(
    rollouts: Sequence[StreamRow], demonstrations: Sequence[StreamRow], rewards: Tensor
) -> StreamBatches:
    """Makes the tables of both heads, for hidden states of the rows one after another.

    Position t predicts the ids at t + 1 in its row. Rollouts come first; T is the sum of the
    lengths of all rows.

    Args:
        rollouts: B·G rows, grouped by prompt.
        rewards: [B, G].

    Raises:
        UserError: the number of rollouts is not that of the rewards.
    """
    if len(rollouts) != rewards.numel():
        raise UserError(f"{len(rollouts)} rollouts for {rewards.numel()} rewards, want as many")
    rows = [*rollouts, *demonstrations]
    lengths = torch.tensor([len(row.ids) for row in rows], dtype=torch.int64)
    number = torch.arange(len(rows)).repeat_interleave(lengths)
    tables = []
    for labels in ([row.labels for row in rows], [row.second_labels for row in rows]):
        # The labels of a row, one position earlier; the last position predicts nothing.
        shifted = [label for row in labels for label in (*row[1:], IGNORE)]
        targets = torch.tensor(shifted, dtype=torch.int64)
        scored = targets != IGNORE
        sampled = number < len(rollouts)
        tables.append(
            HybridBatch(
                targets=targets.clamp(min=0),
                policy_row=torch.where(scored & sampled, number, -1),
                anchor_row=torch.where(scored & ~sampled, number - len(rollouts), -1),
                rewards=rewards,
            )
        )
    return StreamBatches(*tables)


def shared_normalisers(
    text: HybridObjective, audio: HybridObjective, batches: StreamBatches
) -> Normalisers:
    """Returns the denominators that both calls of the loss share, those of one step.

    With token means of each row, the loss of a step is the sum of both heads' losses: rollouts and
    demonstrations are counted once, a demonstration where either head has a label in scope. With
    ``normalisation="token"`` the weights of both heads' tokens are added up.

    Raises:
        ValueError: the objectives do not have the same normalisation.
    """
    if text.normalisation != audio.normalisation:
        raise ValueError(
            f"normalisation: {text.normalisation!r} and {audio.normalisation!r}, want the same"
        )
    first, second = text.normalisers(batches.text), audio.normalisers(batches.audio)
    if text.normalisation == "token":
        both = first + second
        return Normalisers(both.policy, both.anchor, both.kl, first.rollouts)
    labelled = torch.cat(
        [
            batch.anchor_row[objective.token_weights(batch).anchor > 0]
            for objective, batch in ((text, batches.text), (audio, batches.audio))
        ]
    )
    anchors = torch.as_tensor(labelled.unique().numel(), dtype=torch.float64)
    return Normalisers(first.policy, anchors, first.kl, first.rollouts)
