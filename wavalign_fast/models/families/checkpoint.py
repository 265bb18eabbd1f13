"""Opens a family's directory and reads its weights into the native model."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from wavalign_fast.errors import KeyedError
from wavalign_fast.models.families.interface import (
    DEFAULT_OPTIONS,
    DialogueOptions,
    Family,
    FamilyFiles,
)
from wavalign_fast.models.families.registry import family_of
from wavalign_fast.models.families.tokens import check_knows_text
from wavalign_fast.models.families.weight_table import WeightTable
from wavalign_fast.models.json_files import read_config, read_json
from wavalign_fast.models.loading import cast_weights, reading, shapes_of
from wavalign_fast.models.lora import weights_below_lora
from wavalign_fast.models.meta_weights import weights_on_meta
from wavalign_fast.models.weight_files import WeightFiles

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GENERATION = "generation_config.json"


@dataclass(frozen=True, kw_only=True)
class LoadedFamily:
    """A family's directory with its native model."""

    family: Family
    files: FamilyFiles
    model: "PreTrainedModel"
    table: WeightTable


def open_family(
    directory: Path,
    family: Family | None = None,
    options: DialogueOptions = DEFAULT_OPTIONS,
) -> tuple[Family, FamilyFiles]:
    """Reads what a directory says of itself, its tokenizer included, and no weights.

    Args:
        family: the family, by default the one that the files tell.

    Raises:
        UserError: it is of no known family, a file cannot be read or used, or the family cannot
            honour one of ``options``.
    """
    family = family or family_of(directory)
    config = read_config(directory)
    tokenizer = family.load_tokenizer(directory, config)
    check_knows_text(tokenizer, directory)
    layout = family.layout(config, tokenizer)
    if layout.second is not None and options.ratio is not None:
        raise KeyedError(
            f"ratio: {list(options.ratio)} given, wanted none: text and speech of {family.NAME} "
            "are two streams, which do not take turns"
        )
    return family, FamilyFiles(
        directory=directory,
        config=config,
        generation=read_json(directory / GENERATION),
        tokenizer=tokenizer,
        layout=layout,
        options=options,
    )


def load_family(
    directory: Path,
    dtype: torch.dtype | None = None,
    family: Family | None = None,
    options: DialogueOptions = DEFAULT_OPTIONS,
) -> LoadedFamily:
    """Opens a directory and loads its native model, in eval mode.

    Args:
        dtype: of the weights; by default the one in which they are stored.
        family: the family, by default the one that the files tell.

    Raises:
        UserError: it is of no known family, or a file is missing, damaged or does not fit.
    """
    family, files = open_family(directory, family, options)
    with reading(directory):
        model = load_family_model(directory, family, dtype)
    return LoadedFamily(
        family=family, files=files, model=model, table=weight_table(model, family, files.config)
    )


def load_family_model(
    directory: Path, family: Family, dtype: torch.dtype | None = None
) -> "PreTrainedModel":
    """Loads the native model of a family's directory.

    Raises:
        UserError: a file is missing, damaged or does not fit.
    """
    model = empty_family_model(directory, family, dtype)
    table = weight_table(model, family, read_config(directory))
    with WeightFiles(directory) as files:
        for name, parameter in list(model.named_parameters()):
            values = table.read_rows(name, 0, len(parameter), files.rows).to(parameter.dtype)
            path, _, own = name.rpartition(".")
            # A copy: what was read is a view of the file.
            setattr(model.get_submodule(path), own, nn.Parameter(values.clone()))
    return model


def empty_family_model(
    directory: Path, family: Family, dtype: torch.dtype | None = None
) -> "PreTrainedModel":
    """Builds the native model with weights on the meta device, and checks the files against it.

    Raises:
        UserError: a file is missing or does not fit; what does not is listed.
    """
    from transformers import GenerationConfig

    config = read_config(directory)
    with WeightFiles(directory) as files:
        stored = {name: files.shape(name) for name in files.names}
        with weights_on_meta():
            model = family.build(config, dtype or torch.float32)
        table = weight_table(model, family, config)
        table.check(stored, str(directory))
        files.check_dtypes(table.parts)
        if dtype is None:  # that of the language model: encoders beside it may have another one
            cast_weights(model, files.dtype(next(iter(table.parts))))
            model.config.dtype = model.dtype
    # Checkpoints take the files of the tokenizer from there.
    model.name_or_path = str(directory)
    if (directory / GENERATION).is_file():
        model.generation_config = GenerationConfig.from_pretrained(directory)
    return model.eval()


def weight_table(
    model: "PreTrainedModel", family: Family, config: Mapping[str, Any]
) -> WeightTable:
    """Returns the table of a native model; it may be sharded, and have adapters."""
    shapes = shapes_of(weights_below_lora(model))
    return family.weights(config, shapes)


def read_aside(directory: Path, table: WeightTable, prefix: str = "") -> dict[str, Tensor]:
    """Reads the tensors that the native model lacks and whose names begin with ``prefix``.

    Raises:
        DamagedFileError: a file cannot be read.
    """
    with reading(directory), WeightFiles(directory) as files:
        names = [n for n in files.names if n.startswith(prefix) and table.is_aside(n)]
        return {name: files.tensor(name).clone() for name in names}
