"""Writes a trained model back in its family's own format, or as a plain transformers model."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from wavalign_fast.errors import UserError, one_line
from wavalign_fast.models.families.checkpoint import (
    GENERATION,
    empty_family_model,
    weight_table,
)
from wavalign_fast.models.families.interface import Family
from wavalign_fast.models.families.registry import FAMILY_KEY, family_of
from wavalign_fast.models.families.weight_table import WeightTable
from wavalign_fast.models.head import second_head
from wavalign_fast.models.json_files import read_config, read_json
from wavalign_fast.models.loading import check_same_shapes, shapes_of
from wavalign_fast.models.weight_files import WeightFiles

OTHER_WEIGHTS = ("pytorch_model*", "*.safetensors", "flax_model*", "tf_model*")
"""Weights of the model before training, in any format; an export does not copy them."""


def export_family(
    source: Path,
    target: Path,
    weights: Mapping[str, Tensor],
    *,
    aside: Mapping[str, Tensor] | None = None,
    family: Family | None = None,
) -> None:
    """Writes ``target`` in the format of ``source``: its names, dtypes, shards and other files.

    Reads and writes one file of weights after the other.

    Args:
        source: the family's directory that training began with.
        target: a new directory.
        weights: the trained weights of the native model, by its names.
        aside: new values of tensors that the native model lacks, by their stored names; the others
            are those of ``source``.
        family: the family, by default the one that the files tell.

    Raises:
        UserError: ``target`` exists, or weights or tensors do not fit ``source``.
    """
    from safetensors.torch import save_file

    table = _checked_table(source, weights, family)
    aside = aside or {}
    with _new_directory(target) as directory, WeightFiles(source) as files:
        for name, tensor in aside.items():
            if not table.is_aside(name) or name not in files.names:
                raise UserError(f"{source} has no tensor {name} beside its language model")
            _same_shape(name, tensor, files.shape(name))
        _copy_others(source, directory)
        for file in files.files:
            stored = {
                name: _stored(name, weights, aside, table, files) for name in files.in_file(file)
            }
            save_file(stored, directory / file, metadata=files.metadata(file) or None)


def export_plain(
    source: Path,
    target: Path,
    weights: Mapping[str, Tensor],
    *,
    dtype: torch.dtype | None = None,
    family: Family | None = None,
) -> None:
    """Writes the language model alone as plain transformers do, such as for a server.

    ``config.json`` names the family, so that the directory is known again.

    Args:
        source, target, weights, family: as for ``export_family``.
        dtype: of the written weights; by default that of ``weights``.

    Raises:
        UserError: ``target`` exists, ``weights`` do not fit ``source``, or the family has two
            streams.
    """
    family = family or family_of(source)
    _checked_table(source, weights, family)
    wanted = dtype or next(iter(weights.values())).dtype
    model = empty_family_model(source, family, wanted)
    if second_head(model) is not None:
        raise UserError(
            f"{family.NAME} has no plain form in transformers, which has no class for two streams; "
            "wanted its family's own format"
        )
    tokenizer = family.load_tokenizer(source, read_config(source))
    with _new_directory(target) as directory:
        model.save_pretrained(directory, state_dict={n: w.to(wanted) for n, w in weights.items()})
        config = read_json(directory / "config.json") | {FAMILY_KEY: family.NAME}
        text = json.dumps(config, indent=2) + "\n"
        (directory / "config.json").write_text(text, encoding="utf-8")
        tokenizer.save_pretrained(directory)
        if (source / GENERATION).is_file():
            shutil.copyfile(source / GENERATION, directory / GENERATION)


def _checked_table(
    source: Path, weights: Mapping[str, Tensor], family: Family | None
) -> WeightTable:
    family = family or family_of(source)
    model = empty_family_model(source, family, torch.float32)
    table = weight_table(model, family, read_config(source))
    check_same_shapes(source, table.shapes, shapes_of(weights))
    return table


def _same_shape(name: str, tensor: Tensor, wanted: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != wanted:
        raise UserError(f"{name} has the shape {tuple(tensor.shape)}, wanted {wanted}")


@contextmanager
def _new_directory(target: Path) -> Iterator[Path]:
    """Gives a directory to fill, which becomes ``target`` when the block is done."""
    if target.exists():
        raise UserError(f"{target} exists, wanted a new directory")
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        temporary.rename(target)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{target} cannot be written: {one_line(error)}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _copy_others(source: Path, target: Path) -> None:
    """Copies what is not weights, and the index, whose names and files stay."""
    for path in source.iterdir():
        if any(path.match(pattern) for pattern in OTHER_WEIGHTS):
            continue
        if path.is_dir():
            shutil.copytree(path, target / path.name)
        else:
            shutil.copyfile(path, target / path.name)


def _stored(
    name: str,
    weights: Mapping[str, Tensor],
    aside: Mapping[str, Tensor],
    table: WeightTable,
    files: WeightFiles,
) -> Tensor:
    if name in aside:
        tensor = aside[name]
    elif name in table.parts:
        tensor = table.assemble(name, weights)
    else:
        return files.tensor(name)
    return tensor.detach().to(device="cpu", dtype=files.dtype(name)).contiguous()
