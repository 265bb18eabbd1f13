"""The output head of a model as one matrix, including its LoRA adapters."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from wavalign_fast.errors import UserError
from wavalign_fast.models.layers import plain_class
from wavalign_fast.models.logit_transform import logit_transform
from wavalign_fast.ops import LogitTransform
from wavalign_fast.ops.sharded.head import HeadShard, local_slice

# Names instead of classes, because peft is not a dependency.
LORA = "peft.tuners.lora.layer.Linear"
TRAINED_COPY = "peft.utils.other.ModulesToSaveWrapper"
FSDP = "FSDPState."
"""What the names of the hooks of ``torch.distributed.fsdp.fully_shard`` begin with."""
OF_A_MODEL = LogitTransform(bias_added="before_temperature")


class OutputHead(NamedTuple):
    """``logits = hidden · weightᵀ + bias``, and what the model does to them."""

    weight: Tensor
    """[V, H]."""
    bias: Tensor | None
    """[V]."""
    transform: LogitTransform = OF_A_MODEL
    """A scale and a soft cap, as Gemma, Granite and Cohere have them."""


def output_head(module: nn.Module) -> OutputHead:
    """Returns weight, bias and transform of a model's output head, for the fused losses.

    For an ``nn.Linear``, tied or not, these are its parameters. With LoRA (peft) the weight is
    ``W + Σ scaling · B A`` over the active adapters. It is differentiable in each A and B, and in W
    if W is trained. Merged adapters, disabled adapters and a copy in ``modules_to_save`` count as
    in the model's forward pass. A scale or a soft cap after the head is in ``transform``, which
    every loss takes beside the weight. It is read from the model's configuration: of a head alone
    nothing is known.

    The sum is a new [V, H] tensor, and its gradient is another. Its dtype is the widest of W, A and
    B, because bfloat16 would round small updates away; cast it or the hidden states so that they
    agree. Call this function in every step.

    Under ``fully_shard`` (FSDP2) the parameters are whole inside the forward pass of the root: call
    it there. A head in a unit of its own, whose forward nothing has called, is a DTensor.

    Args:
        module: a model with ``get_output_embeddings()``, or the head itself.

    Raises:
        ValueError: the logits are not exactly such a product before the transform (DoRA and other
            kinds of adapters, dropout on an adapter in training, a quantised base, hooks but
            FSDP2's). The message names the cause.
    """
    return _head(_output_module(module))._replace(transform=logit_transform(module))


def second_head(model: nn.Module) -> nn.Linear | None:
    """Returns the head of a model's second stream, ``None`` for a model of one stream."""
    find = getattr(model, "get_second_output_embeddings", None)
    return None if find is None else find()


def is_adapted(module: nn.Module) -> bool:
    """Whether peft has put a LoRA layer or a trained copy in place of a layer."""
    return _kind(module) in (LORA, TRAINED_COPY)


def sharded_head(
    module: nn.Module, *, height: int, dtype: torch.dtype | None = None
) -> tuple[HeadShard, Tensor | None]:
    """This rank's slice of the head and of its bias, to be used where ``weight`` and ``bias`` are.

    ``fully_shard`` has made the head a unit of its own, whose forward nothing calls in training: so
    nothing ever gathers it. After the step's last backward pass ``sum_over_copies`` adds up the
    gradients of a mesh that has copies.

    Args:
        module: a model that passes ``check_head_can_be_sharded``, or its head.
        height: see ``HeadShard``.
        dtype: of the weight, that of the hidden states.

    Raises:
        ValueError: the head cannot be sharded, or is not.
    """
    check_head_can_be_sharded(module)
    weight, bias, _ = output_head(module)
    shard = HeadShard.of(weight, height=height, dtype=dtype)
    return shard, None if bias is None else local_slice(bias)


def check_head_can_be_sharded(module: nn.Module) -> None:
    """Refuses a head that is not a matrix of its own: tied to the embedding, or adapted by peft.

    Raises:
        ValueError: the message says what the head is.
    """
    head, cause = _output_module(module), None
    if is_adapted(head):
        cause = f"a {_kind(head)}"
    elif head is not module and _is_tied(module, head):
        cause = "a head tied to the input embedding"
    if cause is not None:
        raise UserError(
            f"sharded output head: got {cause}, want an nn.Linear with a weight of its own; such a "
            "head must be gathered"
        )


def _output_module(module: nn.Module) -> Any:
    """The head of a model, or the head itself."""
    find = getattr(module, "get_output_embeddings", None)
    return module if find is None else find()


def _is_tied(model: Any, head: Any) -> bool:
    embedding = model.get_input_embeddings()
    return getattr(embedding, "weight", None) is head.weight


def _head(module: Any) -> OutputHead:
    if not is_adapted(module):
        return _linear(module, "output head")
    _check_unhooked(module, "output head")
    return _adapted(module) if _kind(module) == LORA else _head(_copy_in_use(module))


def _kind(module: Any) -> str:
    kind = plain_class(module)
    return f"{kind.__module__}.{kind.__qualname__}"


def _linear(module: Any, what: str) -> OutputHead:
    """Returns weight and bias of a plain linear layer, after its parametrizations."""
    # Quantised layers are subclasses with a forward of their own.
    if not isinstance(module, nn.Linear) or type(module).forward is not nn.Linear.forward:
        raise UserError(f"{what}: got {_kind(module)}, want torch.nn.Linear or a LoRA over one")
    _check_unhooked(module, what)
    weight = module.weight
    # The losses refuse a DTensor (it has placements) and ask for full_tensor().
    dense = type(weight) in (Tensor, nn.Parameter, FakeTensor) or hasattr(weight, "placements")
    if not dense or not weight.is_floating_point():
        raise UserError(
            f"{what}: got a weight of {_kind(weight)} and {weight.dtype}, want a floating tensor"
        )
    return OutputHead(weight, module.bias)


def _check_unhooked(module: nn.Module, what: str) -> None:
    """Raises ``UserError`` for hooks and a replaced forward, whose effect is unknown.

    The hooks of FSDP2 gather and free parameters, which changes no logit.
    """
    hooks: list[Any] = [
        hook
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
        if not getattr(hook, "__qualname__", "").startswith(FSDP)
    ]
    if "forward" in vars(module):
        hooks.append(vars(module)["forward"])
    if hooks:
        raise UserError(f"{what}: got the forward hook {hooks[0]!r}, want none")


def _copy_in_use(wrapper: Any) -> nn.Module:
    """Returns the trained copy, or the original if no adapter is active."""
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
    """Returns the base without the adapters merged into it, as peft's forward restores it."""
    weight, bias, _ = base
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
