"""The decoder layers of a causal language model: they are compiled, and sharded, one by one."""

from typing import TYPE_CHECKING

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
    layers = [module for module in model.modules() if type(module).__name__ in kinds]
    if not layers:
        raise UserError(
            f"decoder layers of {type(model).__name__}: found none of {sorted(kinds)}, wanted a "
            "model of transformers that names them in _no_split_modules"
        )
    return layers


def compile_layers(model: "PreTrainedModel") -> None:
    """Compiles each decoder layer in place for any batch and length; names of weights stay.

    All layers are of one class, so torch compiles a single graph for them. In place, because
    ``torch.compile(layer)`` would put ``_orig_mod`` into the names of a checkpoint's weights.
    """
    for layer in decoder_layers(model):
        layer.compile(dynamic=True)
