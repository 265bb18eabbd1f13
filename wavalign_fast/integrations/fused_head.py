"""The output head of a causal language model, for trainers that are not ours."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wavalign_fast.errors import UserError
from wavalign_fast.models import OutputHead, logit_transform, output_head
from wavalign_fast.ops import LogitTransform, LogProb, LossOptions, linear_logprob


@dataclass(frozen=True, kw_only=True, eq=False)
class FusedHead:
    """The head of a model, for losses that never build its logits.

    The losses take ``head.weight``, ``head.bias`` and ``transform=head.transform``.
    """

    weight: Tensor
    """[V, H], its adapters included."""
    bias: Tensor | None
    """[V]."""
    transform: LogitTransform
    """The scale and the soft cap of the model's configuration."""

    def logprob(
        self,
        hidden: Tensor,
        targets: Tensor,
        *,
        temperature: float = 1.0,
        with_entropy: bool = False,
        with_top: bool = False,
        options: LossOptions | None = None,
    ) -> LogProb:
        """``log softmax(logits / temperature)[target]``: the temperature divides the bias, too.

        Arguments, results and errors are those of ``linear_logprob``.
        """
        return linear_logprob(
            hidden,
            self.weight,
            targets,
            bias=self.bias,
            temperature=temperature,
            with_entropy=with_entropy,
            with_top=with_top,
            transform=self.transform,
            options=options,
        )


def read_head(model: Any, hidden: Tensor, *, fp32: bool = False) -> tuple[Tensor, FusedHead]:
    """Hidden states and head on one device, in one dtype and whole, as the losses take them.

    Call it in each forward pass: wrappers replace parameters. A head that FSDP2 has in a unit of
    its own is gathered.

    Args:
        model: a causal LM of transformers, not a wrapper of one.
        hidden: [..., H], its last hidden states.
        fp32: in float32, whatever its dtype. A trainer that asks for that has replaced the layer's
            forward pass, so it is not looked at.

    Raises:
        UserError: see ``check_head``.
    """
    _refuse_zero3()
    head = _head_in_fp32(model) if fp32 else output_head(model)
    weight = whole(head.weight)
    dtype = torch.promote_types(hidden.dtype, weight.dtype)  # float32 adapters on a bfloat16 body
    bias = None if head.bias is None else whole(head.bias).to(dtype)
    return hidden.to(weight.device, dtype), FusedHead(
        weight=weight.to(dtype), bias=bias, transform=head.transform
    )


def check_head(model: Any, *, fp32: bool = False) -> None:
    """Refuses before the first step what ``read_head`` would refuse in training.

    Raises:
        UserError: DeepSpeed's ZeRO-3, a quantised head, DoRA or dropout on its adapter, layers
            before the head; the message names it.
    """
    layer = model.get_output_embeddings()
    _refuse_layers_before(model, layer)
    modes = [(module, module.training) for module in layer.modules()]
    layer.train()  # an adapter's dropout acts in training alone
    try:
        with torch.no_grad():
            read_head(model, torch.empty(0, dtype=model.dtype), fp32=fp32)
    finally:
        for module, mode in modes:
            module.training = mode


def whole(tensor: Any) -> Tensor:
    """A DTensor gathered, any other tensor as it is.

    Its gradient is the mean over the ranks, as FSDP2 has it for the other parameters: without
    ``grad_placements`` each rank would keep that of its own positions alone.
    """
    gathered: Tensor = tensor
    if hasattr(tensor, "full_tensor"):
        from torch.distributed.tensor import Partial

        mean = [Partial("avg")] * tensor.device_mesh.ndim
        gathered = tensor.full_tensor(grad_placements=mean)
    return gathered


def _head_in_fp32(model: Any) -> OutputHead:
    layer = model.get_output_embeddings()
    if type(layer) is not nn.Linear:
        raise UserError(f"a head in float32: got {type(layer).__name__}, want torch.nn.Linear")
    return OutputHead(layer.weight.float(), layer.bias, logit_transform(model))


def _refuse_layers_before(model: Any, layer: Any) -> None:
    """BERT and ModernBERT as decoders: dense layers and norms lie between body and head."""
    children = list(model.children())
    first = getattr(model, "lm_head", layer)
    if first is not layer or not any(child is layer for child in children):
        kinds = ", ".join(type(child).__name__ for child in children)
        raise UserError(
            f"{type(model).__name__}: got the parts {kinds}, want a body and then its head, "
            f"{type(layer).__name__}, without layers between them"
        )


def _refuse_zero3() -> None:
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

    if is_deepspeed_zero3_enabled():
        raise UserError(
            "DeepSpeed ZeRO-3: it takes the head's weight away before the backward pass, want "
            "ZeRO-2, DDP or FSDP2"
        )
