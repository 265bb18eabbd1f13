"""Names that differ between releases of transformers; no other file depends on them.

Release 5.24 renamed the cache argument of a model's forward, and gradient checkpointing. The old
names still work there, with a FutureWarning, and are removed in 5.40 and 6.
"""

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel


def cache_argument(model: "PreTrainedModel", cache: "Cache") -> Mapping[str, Any]:
    """Returns the keyword argument that passes ``cache`` to this model's forward.

    The model's signature decides, because a model written for an older release keeps the old name.
    A wrapper that accepts any argument gets the name of the installed release.
    """
    names = inspect.signature(model.forward).parameters
    for name in ("cache", "past_key_values"):
        if name in names:
            return {name: cache}
    return {"cache" if _since_5_24() else "past_key_values": cache}


def recompute_activations(model: "PreTrainedModel") -> None:
    """Turns on activation checkpointing: the backward pass recomputes activations.

    Saves memory in training. Forward passes in eval mode do not change.
    """
    if _since_5_24():
        model.activation_checkpointing_enable()
    else:
        model.gradient_checkpointing_enable()


def _since_5_24() -> bool:
    from transformers import PreTrainedModel

    return hasattr(PreTrainedModel, "activation_checkpointing_enable")
