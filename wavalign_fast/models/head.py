"""The output head as one matrix, LoRA adapters included."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from wavalign_fast.errors import UserError

# peft is no dependency, and a module of its classes can only exist where it is installed.
LORA = "peft.tuners.lora.layer.Linear"
TRAINED_COPY = "peft.utils.other.ModulesToSaveWrapper"


class OutputHead(NamedTuple):
    """``logits = hidden · weightᵀ + bias``."""

    weight: Tensor
    """[V, H]."""
    bias: Tensor | None
    """[V]."""


def output_head(module: nn.Module) -> OutputHead:
    """The matrix that a model's logits are made with, for the losses to multiply with.

    An ``nn.Linear``, tied or not, gives its own parameters. Under a LoRA (peft) the weight is
    ``W + Σ scaling · B A`` over the active adapters, differentiable in each A and B, and in W if
    that is trained; merged or disabled adapters and a copy in ``modules_to_save`` count as in the
    model's own forward pass. What the model does to its logits after the head (a scale, a soft cap)
    is not in it.

    The sum is one new [V, H] tensor, its gradient another. It is of the widest dtype among W, A
    and B, lest bfloat16 round small updates away: hidden states must be cast to it, or it to them.
    Call it anew in every step.

    Args:
        module: a model with ``get_output_embeddings()``, or the head itself.

    Raises:
        ValueError: a head whose logits are not exactly such a product (DoRA and other kinds of
            adapters, dropout on an adapter in training, a quantised base, hooks); it is named.
    """
    find = getattr(module, "get_output_embeddings", None)
    return _head(module if find is None else find())


def _head(module: Any) -> OutputHead:
    kind = _kind(module)
    if kind not in (LORA, TRAINED_COPY):
        return _linear(module, "output head")
    _check_unhooked(module, "output head")
    return _adapted(module) if kind == LORA else _head(_copy_in_use(module))


def _kind(module: Any) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _linear(module: Any, what: str) -> OutputHead:
    """Weight and bias of a plain linear layer; ``module.weight`` runs its parametrizations."""
    # Quantised layers are subclasses that multiply in their own way.
    if not isinstance(module, nn.Linear) or type(module).forward is not nn.Linear.forward:
        raise UserError(f"{what}: got {_kind(module)}, want torch.nn.Linear or a LoRA over one")
    _check_unhooked(module, what)
    weight = module.weight
    # A DTensor (it has placements) is left to the loss, which asks for full_tensor().
    dense = type(weight) in (Tensor, nn.Parameter) or hasattr(weight, "placements")
    if not dense or not weight.is_floating_point():
        raise UserError(
            f"{what}: got a weight of {_kind(weight)} and {weight.dtype}, want a floating tensor"
        )
    return OutputHead(weight, module.bias)


def _check_unhooked(module: nn.Module, what: str) -> None:
    """What a hook or a replaced forward does to the logits cannot be known."""
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    if "forward" in vars(module):
        hooks.append(vars(module)["forward"])
    if hooks:
        raise UserError(f"{what}: got the forward hook {hooks[0]!r}, want none")


def _copy_in_use(wrapper: Any) -> nn.Module:
    """The trained copy, or the original where no adapter is active."""
    copies, active = wrapper.modules_to_save, wrapper.active_adapters
    if wrapper.disable_adapters or not active or any(name not in copies for name in active):
        return wrapper.original_module
    return copies[active[0]]


def _adapted(lora: Any) -> OutputHead:
    base = _linear(lora.base_layer, "base of the output head")
    if lora.disable_adapters:
        return _unmerged(lora, base)
    active = [name for name in lora.active_adapters if name in lora.lora_A]
    if lora.merged_adapters or not active:
        return base
    downs, ups = [], []
    for name in active:
        _check_adapter(lora, name)
        downs.append(_linear(lora.lora_A[name], f"lora_A of adapter {name!r}").weight)
        ups.append(_linear(lora.lora_B[name], f"lora_B of adapter {name!r}"))
    dtype = base.weight.dtype
    for matrix in (*downs, *(up.weight for up in ups)):
        dtype = torch.promote_types(dtype, matrix.dtype)
    scales = [lora.scaling[name] for name in active]
    weight = torch.addmm(
        base.weight.to(dtype),
        torch.cat([scale * up.weight.to(dtype) for scale, up in zip(scales, ups, strict=True)], 1),
        torch.cat([down.to(dtype) for down in downs]),
    )
    bias = base.bias
    for scale, up in zip(scales, ups, strict=True):
        if up.bias is not None:
            bias = scale * up.bias if bias is None else bias + scale * up.bias
    return OutputHead(weight, None if bias is None else bias.to(dtype))


def _unmerged(lora: Any, base: OutputHead) -> OutputHead:
    """The base without what was merged into it, as peft's forward pass would first restore it."""
    weight, bias = base
    for name in lora.merged_adapters:
        _check_vanilla(lora, name)
        weight = weight - lora.get_delta_weight(name).detach().to(weight.dtype)
        up = lora.lora_B[name]
        if bias is not None and up.bias is not None:
            bias = bias - (lora.scaling[name] * up.bias).detach().to(bias.dtype)
    return OutputHead(weight, bias)


def _check_vanilla(lora: Any, name: str) -> None:
    variants: Mapping[str, Any] = getattr(lora, "lora_variant", {})
    if name in variants or lora.use_dora.get(name):
        kind = type(variants[name]).__name__ if name in variants else "DoRA"
        raise UserError(f"output head: adapter {name!r} is a {kind}, want a plain LoRA")


def _check_adapter(lora: Any, name: str) -> None:
    _check_vanilla(lora, name)
    dropout = lora.lora_dropout[name]
    inert = isinstance(dropout, nn.Identity) or (
        isinstance(dropout, nn.Dropout) and (dropout.p == 0 or not dropout.training)
    )
    if not inert:
        raise UserError(
            f"output head: adapter {name!r} has {dropout} in training mode, want lora_dropout=0"
        )
