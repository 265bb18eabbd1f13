"""Writes a policy's whole weights as a transformers directory, for an engine in another process.

The ranks gather a few weights at a time, and one rank alone writes them, so that no rank ever holds
the whole model beside its shards.
"""

import copy
import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from wavalign_fast.models.layers import plain_class
from wavalign_fast.rollout.weights import base_of, merged_weights, resharded, whole_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PIECE_BYTES = 2**30
"""Bytes of weights in one file. The writing rank holds those of one file in memory."""
INDEX_FILE = "model.safetensors.index.json"


def write_model(
    source: "PreTrainedModel",
    directory: Path | None,
    *,
    dtype: torch.dtype | None = None,
    root: nn.Module | None = None,
) -> None:
    """Writes the weights of now, adapters merged in, and the configuration. All ranks call it.

    A tied head is written as a matrix of its own.

    Args:
        source: the policy's model, of transformers or peft; sharded or not.
        directory: an empty directory, on the rank that writes; ``None`` on the others.
        dtype: dtype of the written floating weights; with ``None`` each keeps its own.
        root: the module whose units FSDP2 has sharded; by default ``source``.

    Raises:
        OSError: the files cannot be written. The other ranks are not kept waiting.
    """
    resharded(source if root is None else root)
    base = base_of(source)
    weights = merged_weights(source)
    names = list(weights)
    dtypes = [_dtype(weights[name], dtype) for name in names]
    writer = None if directory is None else _Writer(directory)
    for name, whole in zip(
        names, whole_tensors([weights[it] for it in names], dtypes), strict=True
    ):
        if writer is not None:
            writer.add(name, whole)
    if writer is not None:
        writer.finish(_config_of(base, dtypes[0]))


def _dtype(weight: Tensor, wanted: torch.dtype | None) -> torch.dtype:
    return weight.dtype if wanted is None or not weight.is_floating_point() else wanted


def _config_of(base: "PreTrainedModel", dtype: torch.dtype) -> Any:
    config = copy.deepcopy(base.config)
    config.architectures = [plain_class(base).__name__]
    # A tied head with an adapter is a matrix of its own. And vLLM 0.32 keeps a copy of a tied head
    # on a CPU, in another layout, which an update of the weights leaves as it was.
    config.tie_word_embeddings = False
    config.dtype = dtype
    return config


class _Writer:
    """Writes tensors in files of ``PIECE_BYTES``, as they come.

    After an error it takes tensors and does nothing, until ``finish`` raises it: the other ranks
    take part in the gathers until the last one.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.piece: dict[str, Tensor] = {}
        self.places: dict[str, str] = {}
        self.bytes = self.total = self.files = 0
        self.error: Exception | None = None

    def add(self, name: str, weight: Tensor) -> None:
        if self.error is not None:
            return
        # A copy, because the weight may be a view of what was gathered, or the policy's own.
        self.piece[name] = weight.detach().to("cpu", copy=True).contiguous()
        size = weight.numel() * weight.element_size()
        self.bytes, self.total = self.bytes + size, self.total + size
        if self.bytes >= PIECE_BYTES:
            self._flush()

    def finish(self, config: Any) -> None:
        if self.piece:
            self._flush()
        if self.error is not None:
            raise self.error
        config.save_pretrained(self.directory)
        index = {"metadata": {"total_size": self.total}, "weight_map": self.places}
        (self.directory / INDEX_FILE).write_text(json.dumps(index), encoding="utf-8")

    def _flush(self) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        name = f"model-{self.files + 1:05d}.safetensors"
        try:
            save_file(self.piece, self.directory / name, metadata={"format": "pt"})
        except (OSError, SafetensorError) as error:
            self.error = error if isinstance(error, OSError) else OSError(str(error))
            with suppress(OSError):
                (self.directory / name).unlink()
        self.places |= dict.fromkeys(self.piece, name)
        self.piece, self.bytes, self.files = {}, 0, self.files + 1
