"""Names of the metrics that the released code reports too, and its names for them.

Our code says ``policy_loss``, ``anchor_loss`` and ``rl_weight`` (λ) everywhere; metrics leave under
the released names, so that curves of both can be laid over each other.
"""

import torch

RELEASED_NAMES = {
    "policy_loss": "rl_loss",
    "anchor_loss": "sft_loss",
    "loss": "combined_loss",
    "rl_weight": "effective_rl_weight",
    "anchor_weight": "effective_sft_weight",
    # Of the gate: λ, and the means over prompts that it was made of.
    "gate_rl_weight": "adaptive_lambda",
    "gate_raw": "adaptive_lambda_raw",
    "gate_reward": "adaptive_reward_gate",
    "gate_variance": "adaptive_info_gate",
    "gate_reward_max": "adaptive_reward_max",
    "gate_reward_variance": "adaptive_reward_var",
}
"""Released name of each metric that has one; all others are reported under their own."""


def with_released_names(metrics: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The metrics in their order, each under its released name if it has one."""
    return {RELEASED_NAMES.get(name, name): value for name, value in metrics.items()}
