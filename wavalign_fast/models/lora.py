"""LoRA by peft: adapters that are trained beside frozen weights."""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from wavalign_fast.errors import UserError
from wavalign_fast.models.head import is_adapted
from wavalign_fast.models.layers import decoder_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "default"
"""The name of the adapter, peft's own."""


def add_lora(
    model: "PreTrainedModel",
    *,
    rank: int,
    alpha: int,
    targets: Sequence[str],
    head: bool,
    seed: int,
    device: torch.device | None = None,
) -> None:
    """Puts adapters into linear layers, in place; they are trained, and all else is frozen.

    A layer computes ``x · (W + alpha/rank · B A)ᵀ``. B starts at 0, so the model is as before. The
    adapters are float32 over weights of bfloat16, and have no dropout. A head that is tied to the
    embedding gets one of its own, which the embedding has not.

    Args:
        targets: names of linear layers inside the decoder layers, such as ``q_proj``; empty for
            all of them.
        head: whether the output head has an adapter, too.
        seed: of A, the same on every rank.
        device: where the adapters are; by default each is where the weight below it is.

    Raises:
        UserError: peft is not installed, or a target is no linear layer.
    """
    try:
        import peft
    except ImportError as error:
        raise UserError(f"adapters need the package peft (pip install peft): {error}") from error
    names = _adapted_layers(model, targets, head)
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=names, lora_dropout=0.0)
    insert_adapters(model, config, low_cpu_mem_usage=True)
    source = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if is_adapted(module):
            _fill(module, source, device)


def insert_adapters(model: "PreTrainedModel", config: Any, **options: Any) -> None:
    """Puts the adapters of peft's ``config`` into a model, in place, with peft's own values.

    Args:
        options: those of ``peft.inject_adapter_in_model``.
    """
    import peft

    with warnings.catch_warnings():
        # That a tied head has an adapter which the embedding has not is what `head` asks for.
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings")
        peft.inject_adapter_in_model(config, model, NAME, **options)


def _fill(layer: Any, source: torch.Generator, device: torch.device | None) -> None:
    """Gives an adapter, which peft has left without values, those that peft gives: B is 0."""
    weight, down, up = layer.base_layer.weight, layer.lora_A[NAME], layer.lora_B[NAME]
    dtype = _dtype_over(weight)
    device = weight.device if device is None else device
    values = torch.empty(down.weight.shape, dtype=torch.float32, device="cpu")
    values.uniform_(-1, 1, generator=source).div_(math.sqrt(down.weight.shape[1]))
    down.weight = nn.Parameter(values.to(device, dtype))
    up.weight = nn.Parameter(torch.zeros(up.weight.shape, dtype=dtype, device=device))


def weights_below_lora(model: nn.Module) -> dict[str, nn.Parameter]:
    """Returns the weights of the model that the adapters were put into, under their names there."""
    adapters = {
        weight
        for layer in model.modules()
        if is_adapted(layer)
        for name, weight in layer.named_parameters()
        if not name.startswith("base_layer.")
    }
    return {
        name.replace(".base_layer.", "."): weight
        for name, weight in model.named_parameters()
        if weight not in adapters
    }


def lora_bytes(model: "PreTrainedModel", *, rank: int, targets: Sequence[str], head: bool) -> int:
    """Returns the bytes of the adapters that ``add_lora`` would put into ``model``.

    Raises:
        UserError: a target is no linear layer.
    """
    layers = [model.get_submodule(name) for name in _adapted_layers(model, targets, head)]
    return sum(
        rank * sum(layer.weight.shape) * _dtype_over(layer.weight).itemsize
        for layer in layers
        if isinstance(layer, nn.Linear)
    )


def _dtype_over(weight: Tensor) -> torch.dtype:
    """The dtype of an adapter over ``weight``."""
    return torch.promote_types(weight.dtype, torch.float32)


def _adapted_layers(model: "PreTrainedModel", targets: Sequence[str], head: bool) -> list[str]:
    names = _linear_layers(model, targets)
    return [*names, _head_name(model)] if head else names


def _linear_layers(model: "PreTrainedModel", targets: Sequence[str]) -> list[str]:
    inside = {id(module) for layer in decoder_layers(model) for module in layer.modules()}
    found = [
        name
        for name, module in model.named_modules()
        if id(module) in inside and type(module) is nn.Linear
    ]
    leaves = {name.rpartition(".")[2] for name in found}
    if not found:
        raise UserError(f"found no nn.Linear in the decoder layers of {type(model).__name__}")
    for target in targets:
        if target not in leaves:
            raise UserError(
                f"targets: no linear layer is called {target!r}, wanted some of "
                f"{', '.join(sorted(leaves))}"
            )
    return [name for name in found if not targets or name.rpartition(".")[2] in targets]


def _head_name(model: "PreTrainedModel") -> str:
    output = model.get_output_embeddings()
    for name, module in model.named_modules():
        if module is output and type(module) is nn.Linear:
            return name
    raise UserError(f"head: {type(output).__name__} found, wanted an nn.Linear")


def has_lora(model: nn.Module) -> bool:
    """Whether some layer has an adapter."""
    return any(is_adapted(module) for module in model.modules())


@contextmanager
def without_lora(model: nn.Module) -> Iterator[None]:
    """Takes the adapters out of the forward pass in this block: the model that was frozen."""
    layers: list[Any] = [module for module in model.modules() if is_adapted(module)]
    for layer in layers:
        layer._disable_adapters = True  # its method would also say what is trained
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False
