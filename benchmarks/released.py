"""The released WavAlign trainer's order of operations, reimplemented.

It computes the logits of every position, the model's own cross-entropy, whose value is discarded, a
full log-softmax for the policy and another for the anchor. For the entropy metrics it computes a
softmax, a log-softmax and their product. As there, all but the model's own loss is in the operands'
dtype.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .providers import group_advantages


def hybrid_loss(
    policy_logp: Tensor,
    policy_mask: Tensor,
    anchor_logp: Tensor,
    anchor_mask: Tensor,
    rewards: Tensor,
    rl_weight: float,
) -> Tensor:
    """λ · policy + (1 - λ) · anchor of the first, on-policy step.

    Log-probs and masks of the rollouts [B·G, T] and of the demonstrations [A, T']; rewards [B, G].
    """
    advantage = group_advantages(rewards)[:, None]
    mask = policy_mask.to(policy_logp.dtype)
    surrogate = torch.exp(policy_logp - policy_logp.detach()) * advantage
    policy = (-(surrogate * mask).sum(1) / mask.sum(1).clamp(min=1e-6)).mean()
    labelled = anchor_mask.to(anchor_logp.dtype)
    per_row = (-anchor_logp * labelled).sum(1) / labelled.sum(1).clamp(min=1e-6)
    return rl_weight * policy + (1 - rl_weight) * per_row.mean()


def released_step(
    hidden: Tensor,
    weight: Tensor,
    input_ids: Tensor,
    labels: Tensor,
    completion: Tensor,
    policy_mask: Tensor,
    rewards: Tensor,
    rl_weight: float,
) -> Tensor:
    """The loss of a step; hidden [R, L, H], ids and labels [R, L], the masks [B·G, L - 1].

    ``completion`` marks the tokens that the rollouts wrote, ``policy_mask`` those in scope.
    """
    rollouts = rewards.numel()
    logits = hidden @ weight.T  # [R, L, V]
    shifted = logits.float()[:, :-1].contiguous()
    unused = F.cross_entropy(shifted.flatten(0, 1), labels[:, 1:].flatten())

    policy_table = torch.log_softmax(logits[:rollouts, :-1], dim=-1)
    logp = policy_table.gather(-1, input_ids[:rollouts, 1:, None]).squeeze(-1)
    anchor_table = torch.log_softmax(logits[:, :-1], dim=-1)
    label_logp = anchor_table.gather(-1, labels[:, 1:].clamp(min=0)[..., None]).squeeze(-1)

    with torch.no_grad():
        for row in range(rollouts):
            written = logits[row, :-1][completion[row]]
            p = torch.softmax(written, dim=-1)
            unused = unused + -(p * torch.log_softmax(written, dim=-1)).sum(-1).mean()

    labelled = labels[rollouts:, 1:] != -100
    loss = hybrid_loss(logp, policy_mask, label_logp[rollouts:], labelled, rewards, rl_weight)
    del unused  # alive until here, as in the released step
    return loss
