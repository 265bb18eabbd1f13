"""The optimizer by its name, and the learning rate as a function of the step."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wavalign_fast.config.schema import OptimizerConfig
from wavalign_fast.train.adamw8bit import build_adamw8bit
from wavalign_fast.train.muon import Muon, body_matrices


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Builds the optimizer of the trained parameters; weight decay applies to matrices only.

    Raises:
        UserError: the optimizer needs a package that is not installed, or Muon has no matrix.
    """
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    settings: dict[str, Any] = {"lr": config.lr, "betas": config.betas, "eps": config.eps}
    if config.name == "adamw8bit":
        return build_adamw8bit(_groups(trainable, config), **settings)
    if config.name == "muon":
        matrices = body_matrices(model)
        chosen = {id(matrix) for matrix in matrices}
        others = _groups([weight for weight in trainable if id(weight) not in chosen], config)
        return Muon(
            matrices,
            torch.optim.AdamW(others, fused=True, **settings) if others else None,
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
    return torch.optim.AdamW(_groups(trainable, config), fused=True, **settings)


def _groups(weights: Sequence[Tensor], config: OptimizerConfig) -> list[dict[str, Any]]:
    groups = [
        {"params": [w for w in weights if w.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [w for w in weights if w.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Returns the rate of step 1 … ``steps``: linear warm-up, then constant or a cosine to 0.

    It depends only on the step, so a resumed run needs no scheduler state.
    """
    if step <= config.warmup_steps:
        return config.lr * step / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    span = max(steps - config.warmup_steps, 1)
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - config.warmup_steps - 1) / span))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):  # torchao's, and compiled code reads this tensor
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
