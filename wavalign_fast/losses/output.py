"""What a step of the hybrid objective returns."""

from typing import NamedTuple

import torch

from wavalign_fast.losses.totals import MetricTotals


class HybridOutput(NamedTuple):
    """Results of a step; everything but ``loss`` is detached.

    Losses and ``logp`` are float32, or float64 for float64 operands.

    Attributes:
        loss: ``λ L_policy + (1 - λ) L_anchor (+ L_kl)``, 0-d.
        policy_loss: L_policy, 0-d.
        anchor_loss: L_anchor, 0-d.
        kl_loss: L_kl of ``kl_scope="completion"``, 0-d; else 0, for the KL is in ``policy_loss``.
        rl_weight: λ, 0-d.
        logp: [T] log-probs of the targets; 0 at positions that carry no loss.
        metrics: 0-d tensors on the device of the step, means of this batch. KL and entropy of a
            class are absent where some of its completion tokens carry no loss, such as speech under
            a "text" policy.
        totals: the metrics that add up over the parts of a step, under the same names; λ, the
            gate and the rewards are the whole step's and not among them. Losses, KL and completion
            length are divided by the step's ``normalisers``, so their sums over the parts are the
            step's. An entropy is a mean over the tokens of all groups; in ``metrics`` it is, as
            in the released code, the mean over groups of their token means, which does not add
            up where a group is split.
    """

    loss: torch.Tensor
    policy_loss: torch.Tensor
    anchor_loss: torch.Tensor
    kl_loss: torch.Tensor
    rl_weight: torch.Tensor
    logp: torch.Tensor
    metrics: dict[str, torch.Tensor]
    totals: MetricTotals
