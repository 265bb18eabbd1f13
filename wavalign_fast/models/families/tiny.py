"""Makes small checkpoints with random weights in the families' files, for tests and dry runs."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from wavalign_fast.errors import UserError
from wavalign_fast.models.families.checkpoint import GENERATION, weight_table
from wavalign_fast.models.families.registry import family_of
from wavalign_fast.models.families.tiny_parts import PARTS
from wavalign_fast.models.families.weight_table import Shape
from wavalign_fast.models.meta_weights import weights_on_meta
from wavalign_fast.models.weight_files import INDEX, ONE_FILE


def make_tiny_checkpoint(
    kind: str,
    directory: Path,
    *,
    seed: int = 0,
    codebook_size: int = 64,
    dtype: torch.dtype = torch.bfloat16,
    weight_files: int = 1,
) -> None:
    """Writes a checkpoint of a family with random weights; nothing is downloaded.

    Every norm, bias and matrix differs from its usual first value, so that one that is left out or
    taken for another shows.

    Args:
        kind: a name of ``PARTS``: a family, or ``vita_audio_plus``.
        directory: a new directory.
        seed: of the weights.
        codebook_size: number of codes, that of the codec.
        dtype: of the stored weights.
        weight_files: number of files that the weights are dealt to.

    Raises:
        UserError: an unknown kind, or ``directory`` exists.
    """
    if kind not in PARTS:
        raise UserError(f"tiny checkpoint {kind!r}: not known, wanted one of {', '.join(PARTS)}")
    if directory.exists():
        raise UserError(f"{directory} exists, wanted a new directory")
    parts = PARTS[kind](codebook_size)
    parts.write_files(directory)
    config = parts.config | {"torch_dtype": str(dtype).removeprefix("torch.")}
    _write_json(directory / "config.json", config)
    _write_json(directory / GENERATION, parts.generation)
    family = family_of(directory)
    with weights_on_meta():
        table = weight_table(family.build(config, dtype), family, config)
    random = torch.Generator().manual_seed(seed)
    native = {name: _drawn(name, shape, random) for name, shape in sorted(table.shapes.items())}
    stored = {name: table.assemble(name, native) for name in table.parts}
    shapes: dict[str, Shape | Tensor | None] = {**table.aside, **parts.aside}
    for name, shape in sorted(shapes.items()):
        assert shape is not None, name
        stored[name] = shape if isinstance(shape, Tensor) else _drawn(name, shape, random)
    table.check({name: tuple(tensor.shape) for name, tensor in stored.items()}, str(directory))
    _write_weights(directory, {name: w.to(dtype) for name, w in stored.items()}, weight_files)
    for name, (own, wanted) in parts.folders.items():
        (directory / name).mkdir()
        _write_json(directory / name / "config.json", own)
        beside = {n: _drawn(n, shape, random).to(dtype) for n, shape in sorted(wanted.items())}
        _write_weights(directory / name, beside, 1)


def _drawn(name: str, shape: Shape, random: torch.Generator) -> Tensor:
    values = torch.randn(shape, generator=random)
    if len(shape) > 1:
        return values / shape[-1] ** 0.5
    return 0.1 * values + (0.0 if name.endswith("bias") else 1.0)


def _write_json(file: Path, content: Mapping[str, object]) -> None:
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _write_weights(directory: Path, stored: Mapping[str, Tensor], count: int) -> None:
    from safetensors.torch import save_file

    names = sorted(stored)
    file_of: dict[str, str] = {}
    for number in range(count):
        file = ONE_FILE if count == 1 else f"model-{number + 1:05}-of-{count:05}.safetensors"
        own = {name: stored[name].contiguous() for name in names[number::count]}
        save_file(own, directory / file, metadata={"format": "pt"})
        file_of |= dict.fromkeys(own, file)
    if count > 1:
        size = sum(tensor.nbytes for tensor in stored.values())
        _write_json(directory / INDEX, {"metadata": {"total_size": size}, "weight_map": file_of})
