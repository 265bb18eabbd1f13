"""Direct preference optimisation over the tokens of a scope (arXiv 2305.18290, 2604.14932)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from wavalign_fast.losses.checks import check_finite, check_head, check_normaliser
from wavalign_fast.losses.layout import SPEECH, ModalityLayout
from wavalign_fast.losses.normalisers import normalised
from wavalign_fast.losses.segments import MAX_SEGMENTS, segment_sums
from wavalign_fast.losses.totals import MetricTotals
from wavalign_fast.losses.weights import Scope, ScopeWeights, check_scope
from wavalign_fast.ops import IGNORE_INDEX, LogitTransform, LossOptions, linear_logprob
from wavalign_fast.ops.inputs import (
    can_be_read,
    check_device,
    check_int64,
    check_tensor,
    check_type,
    finite_number,
    true_or_false,
)
from wavalign_fast.ops.sharded.head import HeadShard
from wavalign_fast.ops.transfer import copied_together, refuse_in_capture, refuse_meta


class DPOOutput(NamedTuple):
    """Results of ``fused_dpo_loss``; everything but ``loss`` is detached.

    Attributes:
        loss: 0-d float32, or float64 for float64 operands.
        sequence_logp: [S] in the dtype of ``loss``, log-probs summed (or averaged) over the tokens
            in scope; 0 for a sequence without any.
        metrics: 0-d tensors, means over the pairs in the loss, under TRL's names where it has them.
        totals: the same as sums and counts, which add up over the parts of a step. Of the loss it
            is a plain sum, for ``normaliser`` has divided it.
    """

    loss: torch.Tensor
    sequence_logp: torch.Tensor
    metrics: dict[str, torch.Tensor]
    totals: MetricTotals


def dpo_loss(
    policy_chosen: torch.Tensor,
    policy_rejected: torch.Tensor,
    ref_chosen: torch.Tensor,
    ref_rejected: torch.Tensor,
    *,
    beta: float,
) -> torch.Tensor:
    """``-log sigmoid(beta [(S+ - S-)_policy - (S+ - S-)_ref])`` of each pair.

    DPO of Rafailov et al., arXiv 2305.18290. S is the log-prob of a sequence; + is the chosen one.

    Args:
        policy_chosen, policy_rejected: log-probs under the policy, floats of one shape. They get
            the gradient.
        ref_chosen, ref_rejected: the same under the reference, constants without a gradient.
        beta: above 0; how strongly the policy is held to the reference.

    Returns:
        The loss of every pair, in the shape of the arguments.

    Raises:
        ValueError: shapes that differ, or a ``beta`` that is not above 0.
    """
    beta = finite_number("beta", beta, above=0)
    sides = _Sides(policy_chosen, policy_rejected, ref_chosen, ref_rejected)
    for name, side in zip(_Sides._fields, sides, strict=True):
        check_tensor(name, side)
    shapes = [tuple(side.shape) for side in sides]
    if len(set(shapes)) > 1:
        raise ValueError(f"sequence log-probs: got shapes {shapes}, want one shape")
    margin = (policy_chosen - policy_rejected) - (ref_chosen - ref_rejected).detach()
    return -F.logsigmoid(beta * margin)


def fused_dpo_loss(
    hidden: torch.Tensor,
    weight: torch.Tensor | HeadShard,
    targets: torch.Tensor,
    sequence_id: torch.Tensor,
    pairs: torch.Tensor,
    *,
    layout: ModalityLayout,
    scope: Scope = "text",
    beta: float = 0.1,
    ref_logp: torch.Tensor | None = None,
    length_normalised: bool = False,
    normaliser: torch.Tensor | float | None = None,
    bias: torch.Tensor | None = None,
    transform: LogitTransform | None = None,
    options: LossOptions | None = None,
) -> DPOOutput:
    """Mean of ``dpo_loss`` over the pairs, from hidden states and head (arXiv 2305.18290).

    The log-prob of a sequence is summed over its tokens in ``scope``, and only these are multiplied
    with the head. A pair with a side without such a token is left out of the mean. The gradient
    goes to ``hidden``, ``weight`` and ``bias``.

    Args:
        hidden: [T, H] floats; position t predicts ``targets[t]``.
        weight: [V, H] in the dtype of ``hidden``; or this rank's slice of it, a ``HeadShard``.
            ``bias`` is then a slice too, and the loss that of this rank's pairs.
        targets: [T] int64 ids; -100 is ignored. With ``hidden`` on a GPU these and the next two
            tables may be on the CPU: the rows to multiply are then known without a host sync.
        sequence_id: [T] int64 in [0, S), the sequence of each position that is not ignored.
        pairs: [P, 2] int64 indices of sequences (chosen, rejected).
        layout: the class, text or speech, of every id.
        scope: the tokens that count: "all", "text" or "speech".
        beta: above 0; how strongly the policy is held to the reference.
        ref_logp: [S] floats, log-probs under the reference summed over the same tokens, constants
            without a gradient. ``None``: the reference's margin is 0, and counting the sequences of
            tables on a GPU is a host sync.
        length_normalised: divide a sequence's log-prob, and the reference's, by its tokens.
        normaliser: what to divide the sum over the pairs by if they are a part of a step, a number
            or 0-d: ``count_pairs`` of the whole step. The losses of the parts then add up to the
            step's.
        bias: [V] floats, the head's bias.
        transform: what the model does to its logits, as ``output_head`` finds it.
        options: the backend and its limits; see ``LossOptions``.

    Raises:
        ValueError: an argument that does not fit; a table on the CPU while a CUDA graph is
            captured; on the CPU also a ``ref_logp`` that is not finite in a pair.
    """
    true_or_false("length_normalised", length_normalised)
    if normaliser is not None:
        check_normaliser("normaliser", normaliser)
    given = {"sequence_id": sequence_id, "pairs": pairs, "ref_logp": ref_logp}
    if isinstance(normaliser, torch.Tensor):
        given["normaliser"] = normaliser
    check_tensor("hidden", hidden)
    refuse_meta(hidden.device, targets=targets, **given)
    refuse_in_capture(hidden.device, targets=targets, **given)
    sequences = _count_sequences(targets, sequence_id, pairs, ref_logp)
    _check_operands(hidden, weight, len(targets), layout)
    mask, tokens = _tokens_in_scope(targets, sequence_id, sequences, layout, scope)
    live = torch.where(mask > 0, targets, IGNORE_INDEX)
    scores = linear_logprob(hidden, weight, live, bias=bias, transform=transform, options=options)
    row = torch.where(mask > 0, sequence_id, -1)
    # Tables on the CPU have given the rows to multiply. The rest is computed where the hidden
    # states are.
    row, tokens, pairs, ref_logp, normaliser = copied_together(
        scores.logp.device, row, tokens, pairs, ref_logp, normaliser
    )
    divisor = tokens.clamp(min=1.0) if length_normalised else torch.ones_like(tokens)
    policy = segment_sums(scores.logp.to(torch.float64), row, sequences) / divisor
    reference = torch.zeros_like(policy) if ref_logp is None else ref_logp.to(policy) / divisor

    usable = _usable(tokens, pairs)
    sides = _Sides.of(policy, reference, pairs, usable)
    check_finite("chosen ref_logp", sides.ref_chosen, usable)
    check_finite("rejected ref_logp", sides.ref_rejected, usable)
    losses = dpo_loss(*sides, beta=beta)
    count = usable.sum() if normaliser is None else normaliser
    loss = normalised(torch.where(usable, losses, 0.0).sum(), count)
    dtype = scores.logp.dtype
    with torch.no_grad():
        metrics, totals = _metrics(sides, usable, beta)
    return DPOOutput(
        loss=loss.to(dtype),
        sequence_logp=policy.detach().to(dtype),
        metrics=metrics | {"loss": loss.detach().to(dtype)},
        totals=totals + MetricTotals({"loss": loss.detach()}),
    )


def count_pairs(
    targets: torch.Tensor,
    sequence_id: torch.Tensor,
    pairs: torch.Tensor,
    *,
    layout: ModalityLayout,
    scope: Scope = "text",
) -> torch.Tensor:
    """How many pairs have a token in scope on both sides: an int64, 0-d.

    Sum it over the micro-batches of a step for the ``normaliser`` of ``fused_dpo_loss``, and over
    the ranks too; where gradients are averaged over the ranks, divide by their number. The
    arguments are those of ``fused_dpo_loss``.

    Raises:
        ValueError: an argument that does not fit.
    """
    sequences = _count_sequences(targets, sequence_id, pairs, None)
    _, tokens = _tokens_in_scope(targets, sequence_id, sequences, layout, scope)
    return _usable(tokens, pairs).sum()


def _tokens_in_scope(
    targets: torch.Tensor,
    sequence_id: torch.Tensor,
    sequences: int,
    layout: ModalityLayout,
    scope: Scope,
) -> tuple[torch.Tensor, torch.Tensor]:
    """1 at tokens in scope [T], and their number in each sequence [S], float64."""
    check_type("layout", layout, ModalityLayout)
    check_scope("scope", scope)
    weights = ScopeWeights.of("policy", scope, 1.0, 1.0)
    labelled = targets != IGNORE_INDEX
    speech = layout.classify_as("targets", torch.where(labelled, targets, 0)) == SPEECH
    mask = weights.per_token(speech, labelled)
    return mask, segment_sums(mask, torch.where(mask > 0, sequence_id, -1), sequences)


def _usable(tokens: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
    """Which pairs [P] have a token on both sides."""
    chosen, rejected = pairs.unbind(1)
    return (tokens[chosen] > 0) & (tokens[rejected] > 0)


class _Sides(NamedTuple):
    """Sequence log-probs of the pairs, [P] each."""

    policy_chosen: torch.Tensor
    policy_rejected: torch.Tensor
    ref_chosen: torch.Tensor
    ref_rejected: torch.Tensor

    @classmethod
    def of(
        cls,
        policy: torch.Tensor,
        reference: torch.Tensor,
        pairs: torch.Tensor,
        usable: torch.Tensor,
    ) -> "_Sides":
        """Those of the usable pairs; 0 of the others, whose reference may be NaN."""
        chosen, rejected = pairs.unbind(1)
        return cls(
            policy_chosen=torch.where(usable, policy[chosen], 0.0),
            policy_rejected=torch.where(usable, policy[rejected], 0.0),
            ref_chosen=torch.where(usable, reference[chosen], 0.0),
            ref_rejected=torch.where(usable, reference[rejected], 0.0),
        )


def _metrics(
    sides: _Sides, usable: torch.Tensor, beta: float
) -> tuple[dict[str, torch.Tensor], MetricTotals]:
    """Means and sums over the usable pairs; their names are TRL's where it has one."""
    chosen = beta * (sides.policy_chosen - sides.ref_chosen)
    rejected = beta * (sides.policy_rejected - sides.ref_rejected)
    summed = {
        "chosen_logp": sides.policy_chosen,
        "rejected_logp": sides.policy_rejected,
        "ref_chosen_logp": sides.ref_chosen,
        "ref_rejected_logp": sides.ref_rejected,
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": (usable & (chosen > rejected)).to(torch.float64),
    }
    count = usable.sum().to(torch.float64)
    plain = {"pairs": count, "skipped_pairs": (~usable).sum().to(torch.float64)}
    sums = {name: values.sum() for name, values in summed.items()}
    means = {name: total / count.clamp(min=1) for name, total in sums.items()}
    return means | plain, MetricTotals(sums | plain, dict.fromkeys(summed, count))


def _check_operands(
    hidden: torch.Tensor,
    weight: torch.Tensor | HeadShard,
    positions: int,
    layout: ModalityLayout,
) -> None:
    check_type("layout", layout, ModalityLayout)
    check_head(weight, layout)
    if hidden.dim() != 2 or hidden.shape[0] != positions:
        raise ValueError(
            f"hidden: got shape {tuple(hidden.shape)}, want [{positions}, H], a row for each of "
            "targets"
        )


def _count_sequences(
    targets: torch.Tensor,
    sequence_id: torch.Tensor,
    pairs: torch.Tensor,
    ref_logp: torch.Tensor | None,
) -> int:
    """Checks the tables and returns the number of sequences S."""
    named = {"targets": targets, "sequence_id": sequence_id, "pairs": pairs, "ref_logp": ref_logp}
    for name, table in named.items():
        if table is not None or name != "ref_logp":
            check_tensor(name, table)
    if targets.dim() != 1:
        raise ValueError(f"targets: got shape {tuple(targets.shape)}, want [T]")
    if sequence_id.shape != targets.shape:
        raise ValueError(
            f"sequence_id: got shape {tuple(sequence_id.shape)}, want {tuple(targets.shape)}, that "
            "of targets"
        )
    if pairs.dim() != 2 or pairs.shape[1] != 2:
        raise ValueError(f"pairs: got shape {tuple(pairs.shape)}, want [P, 2]")
    for name, table in (("targets", targets), ("sequence_id", sequence_id), ("pairs", pairs)):
        check_device(name, table, targets.device, "targets are")
        check_int64(name, table)
    if ref_logp is not None and (ref_logp.dim() != 1 or not ref_logp.is_floating_point()):
        raise ValueError(
            f"ref_logp: got {ref_logp.dtype} of shape {tuple(ref_logp.shape)}, want floats [S]"
        )
    if ref_logp is not None and not can_be_read(targets):
        return ref_logp.shape[0]  # the checks below would wait for the device
    if targets.device.type == "meta":
        raise ValueError(
            "ref_logp: got None with targets on meta, want [S]: nothing else gives the number of "
            "sequences"
        )
    end = MAX_SEGMENTS if ref_logp is None else ref_logp.shape[0]
    of_tokens = sequence_id[targets != IGNORE_INDEX]
    bounded = ref_logp is not None
    highest = max(
        _highest("sequence_id", of_tokens, end, bounded), _highest("pairs", pairs, end, bounded)
    )
    if ref_logp is None:
        return highest + 1
    last = int(sequence_id.max()) if len(targets) else -1  # also where all are ignored
    if end == len(targets) and end > max(highest, last) + 1:
        raise ValueError(
            f"ref_logp: got {end} values, as many as targets, for {highest + 1} sequences, want "
            "[S]: sums over the tokens of each sequence"
        )
    return end


def _highest(name: str, ids: torch.Tensor, end: int, of_ref_logp: bool) -> int:
    """The highest index among ``ids``, -1 if there is none; refuses one outside [0, ``end``)."""
    if ids.numel() == 0:
        return -1
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= end:
        why = ", the length of ref_logp" if of_ref_logp else ""
        raise ValueError(f"{name}: got sequence {low if low < 0 else high}, want [0, {end}){why}")
    return high
