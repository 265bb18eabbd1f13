"""Loads a model directory into shards: no rank ever holds the whole model.

``empty_model`` builds the model without memory for its weights, ``fully_shard`` cuts it, and
``fill_shards`` reads the rows of each rank from the safetensors files, mapped into memory.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from wavalign_fast.models.families.checkpoint import empty_family_model, weight_table
from wavalign_fast.models.families.interface import Family
from wavalign_fast.models.families.registry import register_own_class, storing_family
from wavalign_fast.models.json_files import read_config
from wavalign_fast.models.loading import reading, say_that_code_is_not_run, shapes_of
from wavalign_fast.models.lora import weights_below_lora
from wavalign_fast.models.meta_weights import weights_on_meta
from wavalign_fast.models.weight_files import WeightFiles, has_weight_files

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def empty_model(
    directory: Path, *, dtype: torch.dtype, family: Family | None = None
) -> "PreTrainedModel | None":
    """Builds the model of ``directory`` with weights on the meta device, in eval mode.

    Args:
        family: in whose format it is stored; by default as the files tell.

    Returns:
        ``None`` if its files do not hold every weight under the model's own name and shape, because
        transformers converts them as it loads them.

    Raises:
        DamagedFileError: a file cannot be read.
        UserError: there is no model in ``directory``, or not the one that its family describes.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    with reading(directory):
        if not has_weight_files(directory):
            return None
        if family := family or storing_family(directory):
            return empty_family_model(directory, family, dtype)
        register_own_class(directory)
        say_that_code_is_not_run(directory)
        # A checkpoint is data: no code of it is run.
        config = AutoConfig.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
        with weights_on_meta():
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
        if (directory / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(directory)
        with WeightFiles(directory) as files:
            stored = {name: files.shape(name) for name in files.names}
    weights = dict(model.named_parameters())
    fits = all(stored.get(name) == shape for name, shape in shapes_of(weights).items())
    every_name = dict(model.named_parameters(remove_duplicate=False))
    stored_buffers = model.state_dict().keys() - every_name.keys()
    return model.eval() if fits and not stored_buffers else None


def fill_shards(model: "PreTrainedModel", directory: Path, *, family: Family | None = None) -> None:
    """Reads this rank's rows of each weight; the model came from ``empty_model`` and is sharded.

    The weights have memory, and any values. Adapters of ``add_lora`` keep theirs. No rank waits for
    another one.

    Args:
        family: as for ``empty_model``.

    Raises:
        DamagedFileError: a file cannot be read.
    """
    with reading(directory), WeightFiles(directory) as files, torch.no_grad():
        family = family or storing_family(directory)
        table = weight_table(model, family, read_config(directory)) if family else None
        for name, weight in weights_below_lora(model).items():
            local, first = _rows_here(weight)
            last = first + len(local)
            if table is None:
                local.copy_(files.rows(name, first, last))
            else:
                local.copy_(table.read_rows(name, first, last, files.rows))


def middle_rows(directory: Path) -> dict[str, Tensor]:
    """Reads one row of each stored tensor, by which two directories can be told apart.

    Raises:
        DamagedFileError: a file cannot be read.
    """
    with reading(directory), WeightFiles(directory) as files:
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
