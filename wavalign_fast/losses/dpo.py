"""Direct preference optimisation over the tokens of a scope (arXiv 2305.18290, 2604.14932)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from wavalign_fast.losses.layout import SPEECH, ModalityLayout
from wavalign_fast.losses.plan import Scope, ScopeWeights
from wavalign_fast.losses.rows import row_sums
from wavalign_fast.ops import IGNORE_INDEX, LossOptions, linear_logprob


class DPOOutput(NamedTuple):
    """Everything but ``loss`` is detached."""

    loss: torch.Tensor
    sequence_logp: torch.Tensor
    """[S], summed (or averaged) over the scored tokens; 0 for a sequence without any."""
    metrics: dict[str, torch.Tensor]


def dpo_loss(
    policy_chosen: torch.Tensor,
    policy_rejected: torch.Tensor,
    ref_chosen: torch.Tensor,
    ref_rejected: torch.Tensor,
    *,
    beta: float,
) -> torch.Tensor:
    """``-log sigmoid(beta [(S+ - S-)_policy - (S+ - S-)_ref])`` of each pair.

    Args:
        policy_chosen, policy_rejected: sequence log-probs under the policy; the gradient goes here.
        ref_chosen, ref_rejected: the same under the reference.

    Returns:
        The loss of every pair, in the shape of the arguments.
    """
    if not beta > 0:
        raise ValueError(f"beta: got {beta}, want > 0")
    shapes = [tuple(t.shape) for t in (policy_chosen, policy_rejected, ref_chosen, ref_rejected)]
    if len(set(shapes)) > 1:
        raise ValueError(f"sequence log-probs: got shapes {shapes}, want one shape")
    margin = (policy_chosen - policy_rejected) - (ref_chosen - ref_rejected)
    return -F.logsigmoid(beta * margin)


def fused_dpo_loss(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    sequence_id: torch.Tensor,
    pairs: torch.Tensor,
    *,
    layout: ModalityLayout,
    scope: Scope = "text",
    beta: float = 0.1,
    ref_logp: torch.Tensor | None = None,
    length_normalised: bool = False,
    bias: torch.Tensor | None = None,
    options: LossOptions | None = None,
) -> DPOOutput:
    """Mean DPO loss over the pairs, from hidden states and head.

    A pair of which one side has no token in scope says nothing and is left out of the mean. Only
    tokens in scope are multiplied with the head.

    Args:
        hidden: [T, H]; position t predicts ``targets[t]``.
        weight: [V, H].
        targets: [T] int64 ids, -100 = not scored.
        sequence_id: [T] int64, the sequence of each scored position, in [0, S).
        pairs: [P, 2] int64 sequence indices (chosen, rejected).
        ref_logp: [S] log-probs under the reference, summed over the same tokens; ``None``: no
            reference, its margin is 0.
        length_normalised: average a sequence's log-probs (and the reference's) over its tokens.
    """
    weights = ScopeWeights.of("dpo", scope, 1.0, 1.0)
    sequences = _check(targets, sequence_id, pairs, ref_logp)
    scored = targets != IGNORE_INDEX
    speech = layout.classify(torch.where(scored, targets, 0)) == SPEECH
    mask = weights.per_token(speech, scored)
    scores = linear_logprob(
        hidden,
        weight,
        torch.where(mask > 0, targets, IGNORE_INDEX),
        bias=bias,
        options=options,
    )
    row = torch.where(mask > 0, sequence_id, -1)
    tokens = row_sums(mask, row, sequences)
    divisor = tokens.clamp(min=1.0) if length_normalised else torch.ones_like(tokens)
    policy = row_sums(scores.logp.to(torch.float64), row, sequences) / divisor
    reference = torch.zeros_like(policy) if ref_logp is None else ref_logp.to(policy) / divisor

    chosen, rejected = pairs.unbind(1)
    usable = (tokens[chosen] > 0) & (tokens[rejected] > 0)
    # Nothing of a pair that is left out, a non-finite reference least of all, reaches the rest.
    sides = _Sides(
        *(
            torch.where(usable, values[side], 0.0)
            for values in (policy, reference)
            for side in (chosen, rejected)
        )
    )
    losses = dpo_loss(*sides, beta=beta)
    count = usable.sum().clamp(min=1)
    loss = torch.where(usable, losses, 0.0).sum() / count
    dtype = scores.logp.dtype
    with torch.no_grad():
        metrics = _metrics(sides, usable, beta)
    return DPOOutput(
        loss.to(dtype), policy.detach().to(dtype), metrics | {"loss": loss.detach().to(dtype)}
    )


class _Sides(NamedTuple):
    """Sequence log-probs of the pairs, [P] each."""

    policy_chosen: torch.Tensor
    policy_rejected: torch.Tensor
    ref_chosen: torch.Tensor
    ref_rejected: torch.Tensor


def _metrics(sides: _Sides, usable: torch.Tensor, beta: float) -> dict[str, torch.Tensor]:
    """Means over the usable pairs, under TRL's names where it has them."""
    count = usable.sum().clamp(min=1)
    chosen = beta * (sides.policy_chosen - sides.ref_chosen)
    rejected = beta * (sides.policy_rejected - sides.ref_rejected)
    means = {
        "chosen_logp": sides.policy_chosen,
        "rejected_logp": sides.policy_rejected,
        "ref_chosen_logp": sides.ref_chosen,
        "ref_rejected_logp": sides.ref_rejected,
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": usable & (chosen > rejected),
    }
    metrics = {name: values.sum() / count for name, values in means.items()}
    return metrics | {"pairs": usable.sum(), "skipped_pairs": (~usable).sum()}


def _check(
    targets: torch.Tensor,
    sequence_id: torch.Tensor,
    pairs: torch.Tensor,
    ref_logp: torch.Tensor | None,
) -> int:
    """The number of sequences, after a check of everything that names one."""
    if targets.dim() != 1 or sequence_id.shape != targets.shape:
        raise ValueError(
            f"targets and sequence_id: got {tuple(targets.shape)} and "
            f"{tuple(sequence_id.shape)}, want the same [T]"
        )
    if pairs.dim() != 2 or pairs.shape[1] != 2:
        raise ValueError(f"pairs: got shape {tuple(pairs.shape)}, want [P, 2]")
    for name, table in (("targets", targets), ("sequence_id", sequence_id), ("pairs", pairs)):
        if table.dtype != torch.int64:
            raise ValueError(f"{name}: got {table.dtype}, want torch.int64")
    named = torch.cat([sequence_id[targets != IGNORE_INDEX], pairs.reshape(-1)])
    if ref_logp is None:
        sequences = int(named.max()) + 1 if named.numel() else 0
    elif ref_logp.dim() != 1:
        raise ValueError(f"ref_logp: got shape {tuple(ref_logp.shape)}, want [S]")
    else:
        sequences = ref_logp.shape[0]
    if named.device.type == "cpu" and named.numel() > 0:
        low, high = int(named.min()), int(named.max())
        if low < 0 or high >= sequences:
            raise ValueError(
                f"sequence_id and pairs: got sequence {low if low < 0 else high}, want [0, "
                f"{sequences})"
            )
    return sequences
