"""WavAlign's policy term in the form of verl's policy losses."""

from typing import Any

from torch import Tensor
from verl.trainer.ppo.core_algos import agg_loss
from verl.utils.torch_functional import masked_mean

from wavalign_fast.losses.policy import policy_tokens


def policy_loss(
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = "token-mean",
    config: Any = None,
    rollout_is_weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """``-min(ρA, clip(ρ)A)``, the policy term of ``HybridObjective``, averaged as verl does it.

    Unlike verl's ``vanilla`` it has no second bound for A < 0, and a token whose ρ is beyond 20
    nats keeps its gradient. ``seq-mean-token-mean`` is the objective's normalisation "sequence",
    ``token-mean`` is "token". All tensors are [R, L]; only ``log_prob`` gets a gradient.
    """
    low, high = (
        config.clip_ratio if bound is None else bound
        for bound in (config.clip_ratio_low, config.clip_ratio_high)
    )
    log_ratio = log_prob - old_log_prob
    tokens = policy_tokens(log_ratio, advantages, clip=(low, high))
    losses = -tokens.surrogate
    if rollout_is_weights is not None:
        losses = losses * rollout_is_weights
    loss: Tensor = agg_loss(
        loss_mat=losses,
        loss_mask=response_mask,
        loss_agg_mode=loss_agg_mode,
        **config.global_batch_info,
    )
    clipped = (tokens.clipped_low | tokens.clipped_high).float()
    return loss, {
        "actor/pg_clipfrac": masked_mean(clipped, response_mask).item(),
        "actor/ppo_kl": masked_mean(-log_ratio.detach(), response_mask).item(),
    }
