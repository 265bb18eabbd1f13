"""The model that samples: the policy's own, or a copy of it without hooks."""

import copy
from typing import TYPE_CHECKING

import torch
from torch import nn

from wavalign_fast.errors import UserError
from wavalign_fast.models.layers import plain_class
from wavalign_fast.rollout import static_decode
from wavalign_fast.rollout.weights import (
    base_of,
    is_sharded,
    merged_weights,
    resharded,
    whole_tensors,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Twin:
    """The model that samples for a policy.

    Where the policy's weights are whole and have the dtype of sampling, that is the policy's model
    itself. Otherwise it is a copy of the architecture, with whole weights, without adapters, hooks
    and shards. A sharded policy would gather every layer for every token; the copy is refreshed
    once a step, by a few large collectives (sources: FSDP2's hooks; the weight transfer of vLLM,
    which does the same to another process).

    Args:
        source: the policy's model, of transformers or peft, on any device; sharded or not.
        dtype: dtype of the copy's floating weights; with ``None`` each has that of its source,
            whatever the dtype of an adapter that is merged into it.
        root: the module whose units FSDP2 has sharded, which holds ``source``; by default
            ``source``.
        keep: whether the copy keeps its memory in ``release``. Its weights then stay in the same
            storage, as CUDA graphs of its forward pass need, and frozen ones are sent only once.

    Attributes:
        model: what samples, in eval mode if it is a copy. The weights of a copy are on the meta
            device before ``refresh`` and after ``release``: they have no memory, and a forward pass
            raises.
        is_copy: whether it is a copy, which needs ``refresh``.
    """

    def __init__(
        self,
        source: "PreTrainedModel",
        dtype: torch.dtype | None = None,
        root: nn.Module | None = None,
        *,
        keep: bool = False,
    ) -> None:
        self.source = source
        self.root = source if root is None else root
        self.dtype = dtype
        self.keep = keep
        self.is_copy = any(_needs_copy(weight, dtype) for weight in source.parameters())
        self.model = _empty_copy(source, dtype) if self.is_copy else source
        self._sent: set[str] = set()

    def refresh(self) -> None:
        """Copies the policy's weights of now into ``model``. A collective: all ranks call it.

        Weights that are not trained are sent once, or after each ``release`` that has freed the
        copy. Call it outside of ``torch.inference_mode``.
        """
        if not self.is_copy:
            return
        resharded(self.root)
        if next(self.model.parameters()).is_meta:
            _put_empty(self.model, next(self.source.parameters()).device)
        weights = merged_weights(self.source)
        targets = dict(self.model.named_parameters())
        names = [name for name in targets if name not in self._sent]
        dtypes = [targets[name].dtype for name in names]
        with torch.no_grad():
            whole = whole_tensors([weights[name] for name in names], dtypes)
            for name, value in zip(names, whole, strict=True):
                targets[name].copy_(value)
            own = dict(self.model.named_buffers())
            for name, buffer in base_of(self.source).named_buffers():
                own[name].copy_(buffer)
        self._sent |= {name for name in names if _is_frozen(weights[name])}

    def release(self) -> None:
        """Frees the copy's weights until the next ``refresh``, unless they are to be kept.

        Training then has their memory, and that of a decode that waits for the next call with their
        addresses in its graph. Nothing happens where the policy's own model samples.
        """
        if self.is_copy and not self.keep:
            static_decode.release(self.model)
            _put_empty(self.model, torch.device("meta"))
            self._sent.clear()


def _put_empty(model: nn.Module, device: torch.device) -> None:
    """Replaces each weight by one without values, on ``device``; tied weights stay tied."""
    made: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for leaf, weight in module._parameters.items():
            if weight is not None:
                empty = torch.empty_like(weight, device=device)
                module._parameters[leaf] = made.setdefault(
                    weight, nn.Parameter(empty, requires_grad=False)
                )


def _needs_copy(weight: torch.Tensor, dtype: torch.dtype | None) -> bool:
    other = dtype is not None and weight.is_floating_point() and weight.dtype != dtype
    return other or is_sharded(weight)


def _is_frozen(weight: torch.Tensor) -> bool:
    """Whether it is the policy's own weight, and is not trained. Merged adapters are not."""
    return isinstance(weight, nn.Parameter) and not weight.requires_grad


def _empty_copy(source: "PreTrainedModel", dtype: torch.dtype | None) -> "PreTrainedModel":
    """The architecture of ``source``, with weights on the meta device."""
    base = base_of(source)
    with torch.device("meta"):
        model = plain_class(base)(copy.deepcopy(base.config))
    sources = merged_weights(source)
    made: dict[int, nn.Parameter] = {}  # what is one weight in the source is one in the copy
    for prefix, module in model.named_modules():
        for leaf, weight in module._parameters.items():
            if weight is not None:
                own = _find(sources, f"{prefix}.{leaf}", source)
                kind = dtype
                if dtype is None or not own.is_floating_point():
                    kind = _stored_dtype(base, prefix, leaf, own)
                empty = torch.empty(weight.shape, dtype=kind, device="meta")
                module._parameters[leaf] = made.setdefault(
                    id(own), nn.Parameter(empty, requires_grad=False)
                )
        for leaf, buffer in module._buffers.items():
            if buffer is not None:
                # Never cast: rotary frequencies lose their digits in bfloat16.
                module._buffers[leaf] = base.get_buffer(f"{prefix}.{leaf}").detach().clone()
    return model.eval()


def _stored_dtype(
    model: "PreTrainedModel", prefix: str, leaf: str, merged: torch.Tensor
) -> torch.dtype:
    """The dtype of a weight below its adapters; the sum of the two has the wider one."""
    layer = getattr(model.get_submodule(prefix), "base_layer", None)
    return merged.dtype if layer is None else getattr(layer, leaf).dtype


def _find(sources: dict[str, torch.Tensor], name: str, model: nn.Module) -> torch.Tensor:
    if name not in sources:
        raise UserError(
            f"rollouts by a copy of {type(model).__name__}: its weight {name} was not found, "
            "wanted a model of transformers, with no adapters but LoRA on linear layers"
        )
    return sources[name]
