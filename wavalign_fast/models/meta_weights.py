"""Builds models without memory for their weights."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def weights_on_meta() -> Iterator[None]:
    """Puts each parameter that a module registers on the meta device; buffers have their values.

    A buffer that no file holds, such as rotary frequencies, is computed where the model is built.
    """
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.to("meta"), parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
