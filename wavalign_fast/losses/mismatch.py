"""Importance weights for rollouts that another implementation of the policy sampled.

A sampler with its own kernels, dtype or older weights gives a token another log-prob than the
trainer does. Then rollouts are off-policy from the start, and the ratio of the two is a weight of
the surrogate, bounded above (truncated importance sampling, IMPALA, arXiv 1802.01561).
"""

import math

import torch

from wavalign_fast.losses.layout import SPEECH, ModalityLayout
from wavalign_fast.losses.policy import linear_beyond
from wavalign_fast.losses.segments import weighted_sum
from wavalign_fast.losses.totals import MetricTotals
from wavalign_fast.ops.inputs import check_floats, check_tensor, check_type, finite_number


def truncated_importance(
    logp: torch.Tensor, sampler_logp: torch.Tensor, cap: float
) -> torch.Tensor:
    """``w = min(exp(logp - sampler_logp), cap)``, the weights of ``HybridBatch.importance``.

    Args:
        logp: [T] floats, log-probs of the sampled tokens under the trainer's policy, before its
            first update on them.
        sampler_logp: [T] floats, those that the sampler drew them with.
        cap: the largest weight, at least 1.

    Returns:
        [T] float64, without a gradient. NaN where a log-prob is; the objective refuses it at a
        token of the policy term.

    Raises:
        ValueError: an argument that does not fit.
    """
    cap = finite_number("cap", cap, low=1.0)
    gap = _gap(logp, sampler_logp)
    return gap.clamp(max=math.log(cap)).exp()  # exp may overflow beyond; a NaN stays one


def mismatch_totals(
    logp: torch.Tensor,
    sampler_logp: torch.Tensor,
    targets: torch.Tensor,
    where: torch.Tensor,
    *,
    layout: ModalityLayout,
    cap: float | None = None,
) -> MetricTotals:
    """How far the sampler is from the trainer, over all sampled tokens and by modality.

    Means over tokens of ``|Δ|`` with ``Δ = logp - sampler_logp`` (``logp_diff/…_mean``), of
    ``e^Δ - 1 - Δ``, the k3 estimate of KL(sampler || trainer) (``sampler_kl/…``), and with a
    ``cap`` the share of tokens whose weight is truncated (``importance/…_truncated``).

    Args:
        logp, sampler_logp: [T] floats, as in ``truncated_importance``.
        targets: [T] int64 ids.
        where: [T] bool, the tokens that were sampled; others may have any value.
        layout: the modality of every id.
        cap: of ``truncated_importance``; ``None`` if nothing is truncated.

    Raises:
        ValueError: an argument that does not fit.
    """
    check_type("layout", layout, ModalityLayout)
    gap = _gap(logp, sampler_logp)
    speech = layout.classify_as("targets", torch.where(where, targets, 0)) == SPEECH
    names = ("text", "speech", "all")
    masks = torch.stack([where & ~speech, where & speech, where]).to(torch.float64)
    tables = {
        "logp_diff/{}_mean": gap.abs(),
        "sampler_kl/{}": linear_beyond(torch.expm1, gap) - gap,
    }
    if cap is not None:
        cap = finite_number("cap", cap, low=1.0)
        tables["importance/{}_truncated"] = (gap > math.log(cap)).to(torch.float64)
    sums, counts = {}, {}
    for pattern, values in tables.items():
        for name, total, count in zip(
            names, weighted_sum(values, masks), masks.sum(-1), strict=True
        ):
            sums[pattern.format(name)], counts[pattern.format(name)] = total, count
    return MetricTotals(sums, counts)


def _gap(logp: torch.Tensor, sampler_logp: torch.Tensor) -> torch.Tensor:
    """``logp - sampler_logp`` [T] float64."""
    for name, table in (("logp", logp), ("sampler_logp", sampler_logp)):
        check_tensor(name, table)
        check_floats(name, table)
    if logp.shape != sampler_logp.shape:
        raise ValueError(
            f"sampler_logp: got shape {tuple(sampler_logp.shape)}, want {tuple(logp.shape)}, that "
            "of logp"
        )
    return logp.detach().to(torch.float64) - sampler_logp.detach().to(torch.float64)
