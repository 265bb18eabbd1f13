"""A causal language model that can be called up to its head, through whatever wraps it."""

import functools
import types
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from wavalign_fast.integrations.fused_head import FusedHead, check_head, read_head
from wavalign_fast.ops import IGNORE_INDEX


def attach_head(model: Any) -> None:
    """Gives a model the argument ``on_head``, with which it returns ``on_head(hidden, head)``.

    ``hidden`` [R, L, H] are the last hidden states and ``head`` a ``FusedHead``. The call goes
    through the model's own ``__call__``, so wrap it afterwards as always: DDP, FSDP2, autocast and
    activation checkpointing do what they do. Without ``on_head`` the model is as it was.

    Args:
        model: a causal LM of transformers, or peft's wrapper of one.

    Raises:
        UserError: a head that the fused losses cannot honour; the message names what it has.
    """

    def forward(
        self: Any, *args: Any, on_head: Callable[[Tensor, FusedHead], Any], **kwargs: Any
    ) -> Any:
        return on_head(*read_head(self, backbone(self, args, kwargs).last_hidden_state))

    check_head(bare_model(model))
    replace_forward(model, forward, when="on_head")


def detach_head(model: Any) -> None:
    """Takes back ``attach_head``, and any other ``replace_forward``."""
    vars(bare_model(model)).pop("forward", None)


def bare_model(model: Any) -> Any:
    """The causal LM inside peft's wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def replace_forward(model: Any, forward: Callable[..., Any], *, when: str) -> None:
    """Lets ``forward(self, ...)`` answer the calls in which the argument ``when`` is given.

    It replaces whatever was put there before. The signature stays the model's, for ``generate`` and
    trainers read it.
    """
    bare = bare_model(model)

    @functools.wraps(type(bare).forward)
    def either(self: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get(when):
            return forward(self, *args, **kwargs)
        kwargs.pop(when, None)
        # Not the forward of before in a closure: a copy of the model would go on calling the
        # original's.
        return type(self).forward(self, *args, **kwargs)

    bare.forward = types.MethodType(either, bare)


def backbone(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The output of the model below its head, called with the arguments of the model."""
    return model.base_model(*args, **{**kwargs, "use_cache": False})


def shifted(labels: Tensor) -> Tensor:
    """Labels [R, L] of the next position; the last position has none."""
    return F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
