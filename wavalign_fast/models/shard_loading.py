"""Loads a model directory into shards: no rank ever holds the whole model.

``empty_model`` builds the model without memory for its weights, ``fully_shard`` cuts it, and
``fill_shards`` reads the rows of each rank from the safetensors files, mapped into memory.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from wavalign_fast.models.loading import reading, say_that_code_is_not_run, shapes_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ONE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def empty_model(directory: Path, *, dtype: torch.dtype) -> "PreTrainedModel | None":
    """Builds the model of ``directory`` with weights on the meta device, in eval mode.

    Returns:
        ``None`` if its files do not hold every weight under the model's own name and shape, because
        transformers converts them as it loads them.

    Raises:
        DamagedFileError: a file cannot be read.
        UserError: there is no model in ``directory``.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    with reading(directory):
        if not any((directory / name).is_file() for name in (ONE_FILE, INDEX)):
            return None
        say_that_code_is_not_run(directory)
        # A checkpoint is data: no code of it is run.
        config = AutoConfig.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
        with _weights_on_meta():
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
        if (directory / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(directory)
        with _Files(directory) as files:
            stored = {name: files.shape(name) for name in files.names}
    weights = dict(model.named_parameters())
    fits = all(stored.get(name) == shape for name, shape in shapes_of(weights).items())
    every_name = dict(model.named_parameters(remove_duplicate=False))
    stored_buffers = model.state_dict().keys() - every_name.keys()
    return model.eval() if fits and not stored_buffers else None


def fill_shards(model: "PreTrainedModel", directory: Path) -> None:
    """Reads this rank's rows of each weight; the model came from ``empty_model`` and is sharded.

    The weights have memory, and any values. No rank waits for another one.

    Raises:
        DamagedFileError: a file cannot be read.
    """
    with reading(directory), _Files(directory) as files, torch.no_grad():
        for name, weight in model.named_parameters():
            local, first = _rows_here(weight)
            local.copy_(files.rows(name, first, first + len(local)))


def middle_rows(directory: Path) -> dict[str, Tensor]:
    """Reads one row of each stored tensor, by which two directories can be told apart.

    Raises:
        DamagedFileError: a file cannot be read.
    """
    with reading(directory), _Files(directory) as files:
        middles = {name: files.shape(name)[0] // 2 for name in files.names if files.shape(name)}
        return {name: files.rows(name, row, row + 1) for name, row in middles.items()}


def _rows_here(weight: Any) -> tuple[Tensor, int]:
    """This rank's rows of a weight, and the number of the first one."""
    if not hasattr(weight, "placements"):
        return weight.data, 0
    local: Tensor = weight.to_local()
    mesh = weight.device_mesh
    (dimension,) = [n for n, place in enumerate(weight.placements) if place.is_shard(0)]
    # As torch.chunk cuts them, which fully_shard does.
    most = -(-weight.shape[0] // mesh.size(dimension))
    return local, min(mesh.get_local_rank(dimension) * most, weight.shape[0])


@contextmanager
def _weights_on_meta() -> Iterator[None]:
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


class _Files:
    """The safetensors files of a directory, opened once each."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._stack = ExitStack()
        self._opened: dict[str, Any] = {}
        self._file_of: dict[str, str] | None = None
        if not (directory / ONE_FILE).is_file() and (directory / INDEX).is_file():
            index = json.loads((directory / INDEX).read_text(encoding="utf-8"))
            self._file_of = index["weight_map"]

    def __enter__(self) -> "_Files":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def names(self) -> list[str]:
        """Names of all stored tensors."""
        return list(self._file_of or self._open(ONE_FILE).keys())

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a stored tensor."""
        return tuple(self._slice(name).get_shape())

    def rows(self, name: str, first: int, last: int) -> Tensor:
        """Reads rows ``first`` to ``last`` of a stored tensor."""
        rows: Tensor = self._slice(name)[first:last]
        return rows

    def _slice(self, name: str) -> Any:
        file = ONE_FILE if self._file_of is None else self._file_of[name]
        return self._open(file).get_slice(name)

    def _open(self, file: str) -> Any:
        from safetensors import safe_open

        if file not in self._opened:
            opened = safe_open(self.directory / file, framework="pt")
            self._opened[file] = self._stack.enter_context(opened)
        return self._opened[file]
