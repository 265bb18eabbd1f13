"""The decoder layers of a causal language model: they are compiled, and sharded, one by one."""

from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn

from wavalign_fast.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def decoder_layers(model: "PreTrainedModel") -> list[nn.Module]:
    """Returns the decoder layers of a model, first to last.

    They are the modules that transformers itself never splits over devices (``_no_split_modules``).

    Raises:
        UserError: the model names no such layer.
    """
    kinds = set(model._no_split_modules or ())
    # All bases, because FSDP2 gives a module that it shards a class of its own.
    layers = [
        module
        for module in model.base_model.modules()
        if not kinds.isdisjoint(base.__name__ for base in type(module).__mro__)
    ]
    if not layers:
        raise UserError(
            f"decoder layers of {type(model).__name__}: found none of {sorted(kinds)}, wanted a "
            "model of transformers that names them in _no_split_modules"
        )
    return layers


def compile_layers(model: "PreTrainedModel") -> None:
    """Compiles each decoder layer in place, for forward passes in training mode.

    All layers are of one class, so torch compiles one graph for them, for any batch and length. In
    place, because ``torch.compile(layer)`` would put ``_orig_mod`` into the names of a checkpoint's
    weights. In training mode alone, because each shape of a cache in a rollout would be compiled.
    """
    for layer in decoder_layers(model):
        layer.compile(dynamic=True)
        layer._compiled_call_impl = partial(_call, layer, layer._compiled_call_impl)


def _call(layer: nn.Module, compiled: Any, *args: Any, **kwargs: Any) -> Any:
    return (compiled if layer.training else layer._call_impl)(*args, **kwargs)
