"""Muon for the matrices of the decoder layers and AdamW for all else, as one optimizer."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wavalign_fast.errors import UserError
from wavalign_fast.models import decoder_layers


def body_matrices(model: nn.Module) -> list[nn.Parameter]:
    """Returns the trained matrices of the decoder layers: those that Muon is made for.

    Raises:
        UserError: there is none.
    """
    found = [
        weight
        for layer in decoder_layers(model)
        for weight in layer.parameters()
        if weight.requires_grad and weight.ndim == 2
    ]
    if not found:
        raise UserError("optimizer.name: muon given, but no matrix of a layer is trained")
    return found


class Muon(torch.optim.Optimizer):
    """``torch.optim.Muon`` over matrices that may be sharded, and an AdamW over all else.

    The step of a matrix is −rate · 0.2 · √max(m, n) · U Vᵀ of its momentum, whose elements are as
    large as those of an AdamW step; so one rate serves both. A shard is gathered once for it, and
    every rank computes the whole step: the same bits at any world, where the products of shards
    would take a dozen collectives and differ by bfloat16's rounding.
    """

    def __init__(
        self,
        matrices: Sequence[nn.Parameter],
        adamw: torch.optim.AdamW | None,
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
    ) -> None:
        self.adamw = adamw
        own = {
            "params": list(matrices),
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
        }
        super().__init__([own, *(adamw.param_groups if adamw else [])], {})
        self._share()

    def _share(self) -> None:
        """Lets AdamW work on the groups and the state that callers see here."""
        if self.adamw:
            self.adamw.param_groups = self.param_groups[1:]
            self.adamw.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads what ``state_dict`` returned."""
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Updates every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        own = self.param_groups[0]
        for matrix in own["params"]:
            if matrix.grad is not None:
                self._update(matrix, matrix.grad, own)
        if self.adamw:
            self.adamw.step()
        return loss

    def _update(self, matrix: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[matrix]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        average = state["momentum_buffer"]
        average.lerp_(gradient, 1 - group["momentum"])
        update = gradient.lerp(average, group["momentum"])  # Nesterov's
        matrix.mul_(1 - float(group["lr"]) * group["weight_decay"])
        matrix.add_(_direction(update).to(matrix.dtype), alpha=float(group["lr"]))


def _direction(update: Tensor) -> Tensor:
    """Returns torch's step of rate 1 for an update, sharded as the update is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    whole = update.full_tensor() if isinstance(update, DTensor) else update
    # From 0 and without a momentum of its own, torch's Muon arrives at the step itself.
    point = nn.Parameter(torch.zeros_like(whole))
    point.grad = whole
    torch.optim.Muon(
        [point],
        lr=1.0,
        weight_decay=0.0,
        momentum=0.0,
        nesterov=False,
        adjust_lr_fn="match_rms_adamw",
    ).step()
    step = point.detach()
    if not isinstance(update, DTensor):
        return step
    # Every rank has the whole step, so none needs to send a part.
    return distribute_tensor(step, update.device_mesh, update.placements, src_data_rank=None)
