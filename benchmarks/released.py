"""The order of operations of the released WavAlign trainer, written anew.

Logits of every position, a cross-entropy by the model itself whose value is thrown away, a full
log-softmax for the policy, another one for the anchor, and softmax, log-softmax and product for
the entropy metrics. All in the operands' dtype but the model's own loss, as there.
"""

import torch
import torch.nn.functional as F

import wavalign_fast as wf


def released_step(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    input_ids: torch.Tensor,
    labels: torch.Tensor,
    batch: wf.HybridBatch,
    layout: wf.ModalityLayout,
    rl_weight: float,
) -> torch.Tensor:
    """The loss of text-scope policy and all-scope anchor; hidden [R, L, H], ids [R, L]."""
    rows, length, _ = hidden.shape
    logits = hidden @ weight.T  # [R, L, V]
    shifted = logits.float()[:, :-1].contiguous()
    unused = F.cross_entropy(shifted.flatten(0, 1), labels[:, 1:].flatten())

    rollouts = batch.rewards.numel()
    policy_row = batch.policy_row.view(rows, length)[:rollouts, :-1]
    targets = input_ids[:, 1:]
    policy_table = torch.log_softmax(logits[:rollouts, :-1], dim=-1)
    logp = policy_table.gather(-1, targets[:rollouts, :, None]).squeeze(-1)
    anchor_table = torch.log_softmax(logits[:, :-1], dim=-1)
    nll = -anchor_table.gather(-1, labels[:, 1:].clamp(min=0)[..., None]).squeeze(-1)

    with torch.no_grad():
        for row in range(rollouts):
            completion = logits[row, :-1][policy_row[row] >= 0]
            p = torch.softmax(completion, dim=-1)
            unused = unused + -(p * torch.log_softmax(completion, dim=-1)).sum(-1).mean()

    text = (layout.classify(targets[:rollouts]) == wf.TEXT) & (policy_row >= 0)
    advantage = wf.group_advantages(batch.rewards).reshape(-1, 1)
    surrogate = torch.exp(logp - logp.detach()) * advantage
    mask = text.to(logp.dtype)
    policy = (-(surrogate * mask).sum(1) / mask.sum(1).clamp(min=1e-6)).mean()
    labelled = (labels[:, 1:] != -100).to(nll.dtype)
    per_row = (nll * labelled).sum(1) / labelled.sum(1).clamp(min=1e-6)
    anchor = per_row[rollouts:].mean()
    del unused  # alive until here, as in the released step
    return rl_weight * policy + (1 - rl_weight) * anchor
