"""What TRL's ``add_fused_lm_head`` does, over ``linear_logprob``."""

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from wavalign_fast.errors import UserError
from wavalign_fast.integrations.attach import backbone, replace_forward, shifted
from wavalign_fast.integrations.fused_head import FusedHead, check_head, read_head
from wavalign_fast.ops import IGNORE_INDEX, LossOptions
from wavalign_fast.ops.logit_transform import LogitForm

SCORES = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
ROWS = 1024
"""Rows whose logits are built at a time, where a soft cap leaves no other way to their mean."""


def add_fused_lm_head(
    model: Any,
    temperature: float = 1.0,
    cast_lm_head_to_fp32: bool = False,
    outputs: Sequence[str] = ("log_probs",),
    *,
    options: LossOptions | None = None,
) -> None:
    """Gives a model the argument ``fused_lm_head`` of TRL's trainers, with TRL's arguments.

    Args:
        options: the backend and its limits.

    Raises:
        UserError: a head or an option that cannot be honoured; the message names it.
    """
    if unknown := set(outputs) - set(SCORES):
        raise UserError(f"outputs: got {', '.join(sorted(unknown))}, want some of {SCORES}")
    try:
        check_head(model, fp32=cast_lm_head_to_fp32)
    except UserError as error:
        option = "cast_lm_head_to_fp32=True: " if cast_lm_head_to_fp32 else ""
        raise UserError(f"{option}{error}") from error

    def forward(
        self: Any,
        *args: Any,
        fused_lm_head: bool,
        labels: Any = None,
        shift_labels: Tensor | None = None,
        num_items_in_batch: Any = None,
        **kwargs: Any,
    ) -> Any:
        from trl.trainer.utils import FusedCausalLMOutput

        config = self.config.get_text_config()
        if getattr(config, "output_router_logits", False):
            kwargs.setdefault("output_router_logits", True)
        below = backbone(self, args, kwargs)
        targets = shifted(labels) if shift_labels is None else shift_labels
        in_fp32 = torch.autocast(targets.device.type, enabled=False)
        with in_fp32 if cast_lm_head_to_fp32 else contextlib.nullcontext():
            hidden, head = read_head(self, below.last_hidden_state, fp32=cast_lm_head_to_fp32)
            targets = targets.to(hidden.device)
            scores = score(head, hidden, targets, outputs, temperature=temperature, options=options)
        if shift_labels is None:
            targets = targets[:, :-1]
            scores = {name: values[:, :-1] for name, values in scores.items()}
        mask = targets != IGNORE_INDEX
        count = mask.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        loss, aux_loss = -scores["log_probs"].sum() / count, None
        if kwargs.get("output_router_logits"):
            aux_loss = _router_loss(config, below, kwargs.get("attention_mask"))
            loss = loss + getattr(config, "router_aux_loss_coef", 0.0) * aux_loss
        return FusedCausalLMOutput(loss=loss, label_mask=mask, aux_loss=aux_loss, **scores)

    replace_forward(model, forward, when="fused_lm_head")


def score(
    head: FusedHead,
    hidden: Tensor,
    targets: Tensor,
    outputs: Sequence[str],
    *,
    temperature: float = 1.0,
    options: LossOptions | None = None,
) -> dict[str, Tensor]:
    """The log-probs, and what else ``outputs`` asks for, of targets [R, L]: each [R, L].

    Log-probs and entropies have a gradient. A position that is ignored has 0, or False.
    """
    found = head.logprob(
        hidden,
        targets,
        temperature=temperature,
        with_entropy="entropy" in outputs,
        with_top="is_top1" in outputs,
        options=options,
    )
    scores = {"log_probs": found.logp}
    if found.entropy is not None:
        scores["entropy"] = found.entropy
    if found.top is not None:
        scores["is_top1"] = found.top
    with torch.no_grad():
        if "log_sum_sq_probs" in outputs:  # log Σ p² = lse(2z) - 2 lse(z)
            double = head.logprob(hidden, targets, temperature=temperature / 2, options=options)
            scores["log_sum_sq_probs"] = double.lse - 2 * found.lse
        if "mean_logits" in outputs:
            scores["mean_logits"] = _mean_logits(head, hidden, targets) / temperature
    return scores


def _mean_logits(head: FusedHead, hidden: Tensor, targets: Tensor) -> Tensor:
    """The mean over the ids: without a soft cap the product with the mean row of the head."""
    form, live = LogitForm.of(1.0, head.transform), targets != IGNORE_INDEX
    weight, bias = head.weight, head.bias
    if head.transform.softcap is None:
        weight = weight.float().mean(0, keepdim=True)
        bias = None if bias is None else bias.float().mean(0, keepdim=True)
    means = torch.zeros(targets.shape, device=hidden.device)
    for rows in live.nonzero().split(ROWS):
        at = tuple(rows.unbind(1))
        product = (hidden[at].to(weight.dtype) @ weight.T).float()
        means[at] = form.logits(product, bias).mean(-1)
    return means


def _router_loss(config: Any, below: Any, attention_mask: Tensor | None) -> Tensor:
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    experts = (config.num_experts, config.num_experts_per_tok)
    loss: Tensor = load_balancing_loss_func(below.router_logits, *experts, attention_mask)
    return loss
