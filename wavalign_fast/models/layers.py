"""The decoder layers of a causal language model: they are compiled, and sharded, one by one."""

from functools import partial
from typing import Any

from torch import nn

from wavalign_fast.errors import UserError


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """Returns the decoder layers of a model, or of a module around one, first to last.

    Raises:
        UserError: the model names no such layer.
    """
    layers = unsplit_modules(model)
    if not layers:
        raise UserError(
            f"decoder layers of {type(model).__name__}: found none of "
            f"{sorted(_unsplit_kinds(model))}, wanted a model of transformers that names them in "
            "_no_split_modules"
        )
    return layers


def unsplit_modules(model: nn.Module) -> list[nn.Module]:
    """Returns the modules that transformers itself never splits over devices, first to last.

    A model lists their classes in ``_no_split_modules``; one that lists none has none.
    """
    kinds = _unsplit_kinds(model)
    return [module for module in model.modules() if plain_class(module).__name__ in kinds]


def _unsplit_kinds(model: nn.Module) -> set[str]:
    return {
        kind
        for module in model.modules()
        for kind in getattr(module, "_no_split_modules", None) or ()
    }


def plain_class(module: Any) -> type:
    """The class of a module before FSDP2 put its own in front of it.

    ``fully_shard`` gives a module a class that is derived from FSDPModule and the module's.
    """
    own, *bases = type(module).__mro__
    return bases[1] if bases[0].__name__ == "FSDPModule" else own


def compile_layers(model: nn.Module, *, backend: str = "inductor") -> None:
    """Compiles each decoder layer in place, for forward passes in training mode.

    All layers are of one class, so torch compiles one graph for them, for any batch and length. In
    place, because ``torch.compile(layer)`` would put ``_orig_mod`` into the names of a checkpoint's
    weights. In training mode alone, because each shape of a cache in a rollout would be compiled.

    Args:
        backend: of torch.compile.
    """
    for layer in decoder_layers(model):
        layer.compile(dynamic=True, backend=backend)
        layer._compiled_call_impl = partial(_call, layer, layer._compiled_call_impl)


def _call(layer: nn.Module, compiled: Any, *args: Any, **kwargs: Any) -> Any:
    return (compiled if layer.training else layer._call_impl)(*args, **kwargs)
