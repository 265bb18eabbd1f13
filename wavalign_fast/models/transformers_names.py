"""What transformers calls differently from one release to another; nothing else knows of it.

5.24 renamed the cache of a model's forward and gradient checkpointing. The old names still work
there, with a FutureWarning, and go in 5.40 and 6.
"""

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel


def cache_argument(model: "PreTrainedModel", cache: "Cache") -> Mapping[str, Any]:
    """The keyword argument that hands ``cache`` to this model's forward.

    The model's own signature decides, for a model written for an older release keeps the old name.
    A wrapper that takes any argument gets the name of the installed release.
    """
    names = inspect.signature(model.forward).parameters
    for name in ("cache", "past_key_values"):
        if name in names:
            return {name: cache}
    return {"cache" if _since_5_24() else "past_key_values": cache}


def recompute_activations(model: "PreTrainedModel") -> None:
    """Keeps the activations of no layer for the backward pass, which computes them again.

    For training with less memory. Forward passes of a model in eval mode are as ever.
    """
    if _since_5_24():
        model.activation_checkpointing_enable()
    else:
        model.gradient_checkpointing_enable()


def _since_5_24() -> bool:
    from transformers import PreTrainedModel

    return hasattr(PreTrainedModel, "activation_checkpointing_enable")
