"""The decoder layers of a causal language model: they are compiled, and sharded, one by one."""

from functools import partial
from typing import Any

from torch import nn

from wavalign_fast.errors import UserError


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """Returns the decoder layers of a model, or of a module around one, first to last.

    They are the modules that transformers itself never splits over devices (``_no_split_modules``).

    Raises:
        UserError: the model names no such layer.
    """
    modules = list(model.modules())
    kinds = {
        kind for module in modules for kind in getattr(module, "_no_split_modules", None) or ()
    }
    # All bases, because FSDP2 gives a module that it shards a class of its own.
    layers = [
        module
        for module in modules
        if not kinds.isdisjoint(base.__name__ for base in type(module).__mro__)
    ]
    if not layers:
        raise UserError(
            f"decoder layers of {type(model).__name__}: found none of {sorted(kinds)}, wanted a "
            "model of transformers that names them in _no_split_modules"
        )
    return layers


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
