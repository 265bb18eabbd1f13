"""RMSNorm, rotary embedding and SwiGLU of a model by the Triton kernels of liger-kernel.

liger-kernel's own ``apply_liger_kernel_to_*`` also replaces functions and classes of transformers'
modules, so that every model of that family in the process changes, and switches on a fused loss.
Here the modules of one model get classes of their own, which call the kernels. Weights, their names
and the head stay as they are.
"""

import inspect
from collections.abc import Callable
from importlib.util import find_spec
from types import FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from wavalign_fast.errors import UserError, one_line
from wavalign_fast.ops import backend_status

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FAMILIES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
"""Model types whose modules compute what the kernels compute, with the prefix of their classes."""

ROTATE = "apply_rotary_pos_emb"
"""The global function that the attention of these models calls."""


class _Kernels(NamedTuple):
    norm: Callable[..., Tensor]
    rope: Callable[..., tuple[Tensor, Tensor]]
    swiglu: Callable[..., Tensor]


def check_liger() -> None:
    """Raises ``UserError`` if liger-kernel is not installed, or its kernels cannot run here."""
    if find_spec("liger_kernel") is None:
        raise UserError("'liger' needs the package liger-kernel (pip install liger-kernel)")
    reason = backend_status()["triton"]
    if reason is not None:
        raise UserError(f"'liger' cannot be used here: its kernels are Triton's, and {reason}")


def use_liger(model: "PreTrainedModel") -> None:
    """Makes the norms, attentions and MLPs of ``model`` call liger-kernel, in place.

    Copies of the model do, too; other models do not. The kernels write over the inputs of the
    rotary embedding, and in the backward pass over those of SwiGLU: one graph has one backward
    pass.

    Args:
        model: of a family in ``FAMILIES``, before anything wraps it.

    Raises:
        UserError: liger-kernel is missing, cannot run here, or does not fit the model.
    """
    check_liger()
    prefix = _prefix(model)
    kernels = _kernels()
    forwards = {
        f"{prefix}RMSNorm": lambda kind: _norm(kernels),
        f"{prefix}MLP": lambda kind: _mlp(kernels),
        f"{prefix}Attention": lambda kind: _attention(kind, kernels),
    }
    kinds = {type(module) for module in model.modules() if type(module).__name__ in forwards}
    lacking = sorted(forwards.keys() - {kind.__name__ for kind in kinds})
    if lacking:
        raise UserError(
            f"'liger' given, but {type(model).__name__} has no {lacking[0]}, "
            f"wanted a model with {', '.join(forwards)}"
        )
    classes = {
        kind: type(
            f"Liger{kind.__name__}",
            (kind,),
            {"forward": forwards[kind.__name__](kind), "__module__": __name__},
        )
        for kind in kinds
    }
    for module in model.modules():
        if type(module) in classes:
            module.__class__ = classes[type(module)]


def _prefix(model: "PreTrainedModel") -> str:
    kind, act = model.config.model_type, getattr(model.config, "hidden_act", None)
    if kind not in FAMILIES:
        raise UserError(
            f"'liger' given for a model of type {kind!r}, wanted one of {', '.join(FAMILIES)}"
        )
    if act not in ("silu", "swish"):
        raise UserError(f"'liger' given for a model with hidden_act {act!r}, wanted 'silu'")
    return FAMILIES[kind]


def _kernels() -> _Kernels:
    try:
        from liger_kernel.transformers.functional import liger_rms_norm, liger_rope, liger_swiglu
    except ImportError as error:
        raise UserError(f"'liger' cannot be used here: {one_line(error)}") from error
    return _Kernels(liger_rms_norm, liger_rope, liger_swiglu)


def _norm(kernels: _Kernels) -> Callable[..., Tensor]:
    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        # By default the gradient of the output is overwritten; the last norm's belongs to the loss.
        return kernels.norm(hidden_states, self.weight, self.variance_epsilon, in_place=False)

    return forward


def _mlp(kernels: _Kernels) -> Callable[..., Tensor]:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.down_proj(kernels.swiglu(self.gate_proj(x), self.up_proj(x)))

    return forward


def _attention(kind: type, kernels: _Kernels) -> Callable[..., Any]:
    """The attention's own forward, which finds the kernel under the name of the global function."""
    # Without the decorators that rename arguments for callers other than the decoder layer.
    original: Any = inspect.unwrap(kind.forward)  # type: ignore[attr-defined]
    if ROTATE not in original.__code__.co_names:
        raise UserError(
            f"'liger' given, but {kind.__name__} does not call {ROTATE}, wanted an attention of "
            "transformers that does"
        )
    forward = FunctionType(
        original.__code__,
        {**original.__globals__, ROTATE: kernels.rope},
        original.__name__,
        original.__defaults__,
        original.__closure__,
    )
    forward.__kwdefaults__ = original.__kwdefaults__
    return forward
