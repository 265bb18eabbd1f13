"""The output head of a causal language model, for trainers that are not ours."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wavalign_fast.errors import UserError
from wavalign_fast.models.head import OutputHead, output_head
from wavalign_fast.ops import LogProb, LossOptions, linear_logprob


@dataclass(frozen=True, kw_only=True, eq=False)
class FusedHead:
    """``logits = scale · (hidden · weightᵀ + bias)``, for losses that never build them."""

    weight: Tensor
    """[V, H], its adapters included."""
    bias: Tensor | None
    """[V]."""
    scale: float = 1.0
    """``logit_scale`` of the model's configuration."""

    def logprob(
        self,
        hidden: Tensor,
        targets: Tensor,
        *,
        temperature: float = 1.0,
        with_entropy: bool = False,
        options: LossOptions | None = None,
    ) -> LogProb:
        """``log softmax(logits / temperature)[target]``: the temperature divides the bias, too.

        Arguments, results and errors are those of ``linear_logprob``.
        """
        factor = self.scale / temperature
        return linear_logprob(
            hidden,
            self.weight,
            targets,
            bias=None if self.bias is None else self.bias * factor,
            temperature=1.0 / factor,
            with_entropy=with_entropy,
            options=options,
        )

    def as_product(self, hidden: Tensor) -> tuple[Tensor, OutputHead]:
        """``hidden`` and a head whose plain product are the logits, as ``HybridObjective`` takes
        them: the scale is in both."""
        if self.scale == 1.0:
            return hidden, OutputHead(self.weight, self.bias)
        bias = None if self.bias is None else self.bias * self.scale
        return hidden * self.scale, OutputHead(self.weight, bias)


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
    scale = logit_scale(model.config)
    layer = model.get_output_embeddings()
    if fp32 and type(layer) is not nn.Linear:
        raise UserError(f"a head in float32: got {type(layer).__name__}, want torch.nn.Linear")
    head = OutputHead(layer.weight.float(), layer.bias) if fp32 else output_head(layer)
    weight = whole(head.weight)
    dtype = torch.promote_types(hidden.dtype, weight.dtype)  # float32 adapters on a bfloat16 body
    bias = None if head.bias is None else whole(head.bias).to(dtype)
    return hidden.to(weight.device, dtype), FusedHead(
        weight=weight.to(dtype), bias=bias, scale=scale
    )


def check_head(model: Any, *, fp32: bool = False) -> None:
    """Refuses before the first step what ``read_head`` would refuse in training.

    Raises:
        UserError: DeepSpeed's ZeRO-3, a soft cap, a quantised head, DoRA or dropout on its adapter;
            the message names it.
    """
    layer = model.get_output_embeddings()
    modes = [(module, module.training) for module in layer.modules()]
    layer.train()  # an adapter's dropout acts in training alone
    try:
        with torch.no_grad():
            read_head(model, torch.empty(0, dtype=model.dtype), fp32=fp32)
    finally:
        for module, mode in modes:
            module.training = mode


def logit_scale(config: Any) -> float:
    """The factor of a model's logits, from its configuration.

    Raises:
        UserError: the model also caps them.
    """
    config = config.get_text_config()
    cap = getattr(config, "final_logit_softcapping", None)
    if cap is not None:
        raise UserError(
            f"final_logit_softcapping: got {cap}, want None: no fused loss has a soft cap"
        )
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if getattr(config, name, None) is not None:
            return float(getattr(config, name))
    scaling = getattr(config, "logits_scaling", None)
    if scaling is None:
        return 1.0
    # Granite divides by what HyperCLOVA X multiplies with.
    return float(scaling) if config.model_type == "hyperclovax" else 1.0 / float(scaling)


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


def _refuse_zero3() -> None:
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

    if is_deepspeed_zero3_enabled():
        raise UserError(
            "DeepSpeed ZeRO-3: it takes the head's weight away before the backward pass, want "
            "ZeRO-2, DDP or FSDP2"
        )
