"""AdamW with moments of 8 bits, from the optional package torchao."""

from collections.abc import Sequence
from typing import Any

import torch

from wavalign_fast.errors import UserError


def build_adamw8bit(groups: Sequence[dict[str, Any]], **settings: Any) -> torch.optim.Optimizer:
    """Builds torchao's ``AdamW8bit``; where weights are bfloat16 it rounds them stochastically.

    A bfloat16 weight is lost below 2⁻⁹ of its size, where nearly all updates of fine-tuning are:
    rounded to nearest it would never move, rounded stochastically it moves by the right mean.

    Raises:
        UserError: torchao is not installed.
    """
    try:
        from torchao.optim import AdamW8bit
    except ImportError as error:
        raise UserError(
            f"optimizer.name: adamw8bit needs the package torchao (pip install torchao): {error}"
        ) from error
    rounds = any(weight.dtype == torch.bfloat16 for group in groups for weight in group["params"])
    optimizer = AdamW8bit(list(groups), bf16_stochastic_round=rounds, **settings)
    if rounds:
        _draw_by_step(optimizer)
    return optimizer


def _draw_by_step(optimizer: torch.optim.Optimizer) -> None:
    """Makes the rounding of step n depend on n alone, so that a resumed run rounds alike.

    torchao draws from torch's global generators, whose states would have to be saved on each rank.
    The shards of a weight may share their numbers: each still rounds to the right mean.
    """
    saved: list[torch.Tensor] = []

    def before(it: torch.optim.Optimizer, *_: Any) -> None:
        devices = {weight.device.type for group in it.param_groups for weight in group["params"]}
        saved.append(torch.get_rng_state())
        if "cuda" in devices:
            saved.append(torch.cuda.get_rng_state())
        done = next((state["step"] for state in it.state.values() if "step" in state), 0)
        torch.manual_seed(int(done))

    def after(*_: Any) -> None:
        torch.set_rng_state(saved[0])
        if len(saved) > 1:
            torch.cuda.set_rng_state(saved[1])
        saved.clear()

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)
