"""The loss of a transformers causal LM without its logits, for any loop that calls the model.

Works with transformers' Trainer, Accelerate, Lightning and plain torch: see ``fused_loss``.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import ModelOutput

from wavalign_fast.errors import UserError
from wavalign_fast.integrations.answered_calls import calls_answered
from wavalign_fast.integrations.attach import backbone, bare_model, shifted
from wavalign_fast.integrations.fused_head import check_head, read_head
from wavalign_fast.ops import IGNORE_INDEX, LossOptions


@dataclass
class ScoredOutput(ModelOutput):
    """What a call without labels returns under ``fused_loss(score_inputs=True)``."""

    logps: Tensor | None = None
    """[R, L] floats, ``log p`` of the target; 0 where there is none."""
    targets: Tensor | None = None
    """[R, L] the next token of ``input_ids``; -100 at the last position and before padding."""


@contextmanager
def fused_loss(
    model: Any, *, options: LossOptions | None = None, score_inputs: bool = False
) -> Iterator[None]:
    """Inside, ``model(..., labels=labels)`` in training mode returns its loss with ``logits=None``.

    The loss is the model's own: ``-Σ log p(label) / n`` over the labels other than -100, where n is
    their number or ``num_items_in_batch``; ``shift_labels`` are labels that are shifted already. In
    eval mode and without labels the model is as it was, and so are its copies. Afterwards, also
    after an exception, nothing is left behind. DDP, FSDP2 and peft may wrap it before or inside,
    ``prepare`` of Accelerate inside.

    Args:
        model: a causal LM of transformers, or peft's wrapper of one.
        options: of ``linear_logprob``.
        score_inputs: a call in training mode without labels returns a ``ScoredOutput`` in place of
            logits, for ``fused_causal_lm_loss``. Prompts meet the head then, too.

    Raises:
        UserError: a head or a loss that is not honoured; the message names it.
    """
    bare = bare_model(model)
    _check_model(bare)

    def answer(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not bare.training:
            return NotImplemented
        if kwargs.get("labels") is not None or kwargs.get("shift_labels") is not None:
            return _loss(bare, args, kwargs, options)
        decodes = kwargs.get("use_cache") or kwargs.get("logits_to_keep")
        if score_inputs and not decodes and (args or kwargs.get("input_ids") is not None):
            return _scores(bare, args, kwargs, options)
        return NotImplemented

    with calls_answered(bare, answer):
        yield


def fused_causal_lm_loss(
    outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None
) -> Tensor:
    """``compute_loss_func`` of transformers' Trainer, inside ``fused_loss(score_inputs=True)``.

    The Trainer then divides by the labels of the whole step, also for a model whose forward takes
    no ``num_items_in_batch``.

    Args:
        outputs: the ``ScoredOutput`` of the model.
        labels: [R, L], the token of ``input_ids`` or -100.

    Raises:
        UserError: other outputs, or labels that are not the inputs.
    """
    logps, targets = getattr(outputs, "logps", None), getattr(outputs, "targets", None)
    if logps is None or targets is None:
        raise UserError(
            f"fused_causal_lm_loss: got {type(outputs).__name__} without logps, want a model in "
            "training mode inside fused_loss(model, score_inputs=True)"
        )
    wanted = shifted(labels).to(logps.device)
    used = wanted != IGNORE_INDEX
    if bool((used & (wanted != targets)).any()):
        raise UserError("labels: got another token than in input_ids, want the same or -100")
    count = used.sum() if num_items_in_batch is None else num_items_in_batch
    return -logps.masked_fill(~used, 0.0).sum() / count


def _loss(
    model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], options: LossOptions | None
) -> CausalLMOutputWithPast:
    for name in ("logits_to_keep", "ignore_index", "output_router_logits"):
        if kwargs.get(name):
            raise UserError(f"{name}: got {kwargs[name]}, want none beside labels in fused_loss")
    names = ("labels", "shift_labels", "num_items_in_batch")
    labels, shift_labels, count = (kwargs.pop(name, None) for name in names)
    body = backbone(model, args, kwargs)
    hidden, head = read_head(model, body.last_hidden_state)
    targets = (shifted(labels) if shift_labels is None else shift_labels).to(hidden.device)
    total = -head.logprob(hidden, targets, options=options).logp.sum()
    return CausalLMOutputWithPast(
        loss=total / ((targets != IGNORE_INDEX).sum() if count is None else count),
        hidden_states=body.get("hidden_states"),
        attentions=body.get("attentions"),
    )


def _scores(
    model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], options: LossOptions | None
) -> ScoredOutput:
    ids = args[0] if args else kwargs["input_ids"]
    mask = args[1] if len(args) > 1 else kwargs.get("attention_mask")
    padded = mask is not None and mask.dim() == 2
    targets = shifted(ids.masked_fill(mask == 0, IGNORE_INDEX) if padded else ids)
    kwargs.pop("num_items_in_batch", None)
    hidden, head = read_head(model, backbone(model, args, kwargs).last_hidden_state)
    targets = targets.to(hidden.device)
    return ScoredOutput(head.logprob(hidden, targets, options=options).logp, targets)


def _check_model(bare: Any) -> None:
    if not isinstance(bare, PreTrainedModel):
        raise UserError(f"fused_loss: got a {type(bare).__name__}, want a model of transformers")
    if "forward" in vars(bare):
        raise UserError(
            f"fused_loss: got a model with another forward, {vars(bare)['forward']!r}, want its "
            "own: enter fused_loss before accelerator.prepare"
        )
    if getattr(bare.config.get_text_config(), "output_router_logits", False):
        raise UserError("output_router_logits: got True, want False: its loss is the model's own")
    if bare.loss_function is not ForCausalLMLoss:
        raise UserError(f"loss_function: got {bare.loss_function}, want {ForCausalLMLoss}")
    check_head(bare)
