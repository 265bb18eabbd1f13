"""Exports a checkpoint as a plain transformers directory, in one process without the ranks.

Only the files of the checkpoint are needed, so that another machine can do it. Where adapters alone
were trained, they are merged into the model that the run began with, or written for peft.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from wavalign_fast.errors import DamagedFileError, UserError, one_line
from wavalign_fast.models import (
    check_same_shapes,
    insert_adapters,
    is_adapted,
    load_checkpoint,
    shapes_of,
)
from wavalign_fast.models.families.export import export_family
from wavalign_fast.models.families.registry import register_own_class
from wavalign_fast.models.families.vita_mtp import mtp_tensors
from wavalign_fast.models.json_files import read_config
from wavalign_fast.rollout.weights import merged_weights
from wavalign_fast.train.atomic_files import remove, replace_directory, sync_directory, write_json
from wavalign_fast.train.owned_files import (
    CHECKPOINT,
    EXPORTED,
    OLDER_CHECKPOINTS,
    STATE_FILE,
    checkpoint_contents,
    foreign_file,
    read_json_object,
    write_contents,
)
from wavalign_fast.train.sharded_files import METADATA_FILE, PartError, load_tensors, saved_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from wavalign_fast.models.families.interface import Family

WEIGHTS = "weights"
"""The folder of a sharded checkpoint with the weights and all that a model directory has beside."""

MTP = "mtp.layers."
"""How the names of the weights of MTP layers begin there: ``Policy.mtp``."""

ADAPTERS = "adapter_config.json"
"""peft's description of the adapters; there if they alone were trained."""
ADAPTER_WEIGHTS = "adapter_model.safetensors"
"""peft's name of their weights."""

COMPANIONS = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "chat_template*",
    "*processor_config.json",
)
"""Files beside the weights of a model that belong to it: those of tokenizer and processor."""


def is_sharded(checkpoint: Path) -> bool:
    """Whether several ranks have written ``checkpoint``, so that it is no model directory."""
    return (checkpoint / WEIGHTS).is_dir()


def copy_companions(source: str | Path, target: Path) -> None:
    """Copies the files of tokenizer and processor, if ``source`` is a directory that has some."""
    if not source or not Path(source).is_dir():
        return
    for pattern in COMPANIONS:
        for file in Path(source).glob(pattern):
            if file.is_file():
                shutil.copyfile(file, target / file.name)


def save_configs(model: "PreTrainedModel", directory: Path) -> None:
    """Writes the files of a model directory that say what the model is, without its weights."""
    model.config.save_pretrained(directory)
    if model.can_generate():
        model.generation_config.save_pretrained(directory)
    for lora in getattr(model, "peft_config", {}).values():
        lora.save_pretrained(directory)


def model_directory(run: Path) -> Path:
    """Returns the transformers directory of a run's newest model.

    Raises:
        UserError: several ranks have saved the newest checkpoint, and it is not exported.
    """
    checkpoint, exported = run / CHECKPOINT, run / EXPORTED
    if not is_sharded(checkpoint):
        return checkpoint
    if checkpoint_contents(exported).get("step") != checkpoint_contents(checkpoint).get("step"):
        raise UserError(
            f"{checkpoint} was saved by several ranks and is not exported; wanted {exported}: "
            f"wavalign-fast export {run}"
        )
    return exported


def run_of(checkpoint: Path) -> Path:
    """Returns the directory of the run of a checkpoint; a run's directory is returned as it is."""
    if not (checkpoint / STATE_FILE).is_file():
        return checkpoint
    folder = checkpoint.resolve().parent
    return folder.parent if folder.name == OLDER_CHECKPOINTS else folder


def check_same_model(checkpoint: Path, model: "PreTrainedModel") -> None:
    """Raises unless ``model`` has the weights of the checkpoint's; reads its configuration alone.

    Raises:
        DamagedFileError: the configuration cannot be read.
        UserError: the checkpoint is of another model.
    """
    saved = _empty_model(checkpoint / WEIGHTS if is_sharded(checkpoint) else checkpoint, None)
    check_same_shapes(checkpoint, shapes_of(saved.state_dict()), shapes_of(model.state_dict()))


def export_run(
    run: Path,
    target: Path | None = None,
    dtype: torch.dtype | None = None,
    base: Callable[[], "PreTrainedModel"] | None = None,
) -> Path:
    """Exports the newest checkpoint of a run, or the checkpoint ``run``; returns where to.

    Args:
        target: a new directory; by default ``model/`` in the run, which may be there already.
        dtype: dtype of the written weights; by default the one in which they are saved.
        base: loads the model that the run began with; called where adapters alone were trained.

    Raises:
        UserError: there is no checkpoint, or something is in ``target``.
    """
    checkpoint = _checkpoint_of(run)
    own = target is None
    target = target or run / EXPORTED
    _refuse(foreign_file(target, EXPORTED) if own else next(iter(_inside(target)), None))
    source = _source_of(checkpoint)
    model, weights = _trained(checkpoint, dtype, base)
    step = checkpoint_contents(checkpoint).get("step") if own else None

    def write(directory: Path) -> None:
        model.save_pretrained(directory, state_dict=weights)
        copy_companions(source, directory)
        if step is not None:
            write_contents(directory, step)

    _write(target, write)
    return target


def export_as_family(
    run: Path,
    target: Path,
    began_with: Path,
    family: "Family | None" = None,
    base: Callable[[], "PreTrainedModel"] | None = None,
) -> Path:
    """Writes a run's newest model, or that of a checkpoint, in the format of a model family.

    Args:
        target: a new directory.
        began_with: the family's directory that the run began with. What was not trained is copied
            from there.
        family: the family, by default the one that the files tell.
        base: as for ``export_run``.

    Raises:
        UserError: there is no checkpoint, something is in ``target``, or ``began_with`` is of no
            known family.
    """
    checkpoint = _checkpoint_of(run)
    _refuse(next(iter(_inside(target)), None))
    _, weights = _trained(checkpoint, None, base)
    trained = _mtp_weights(_source_of(checkpoint))
    aside = mtp_tensors(trained, read_config(began_with)) if trained else None
    export_family(began_with, target, weights, aside=aside, family=family)
    return target


def trains_mtp(run: Path) -> bool:
    """Whether the newest checkpoint of a run, or the checkpoint ``run``, has MTP layers."""
    return bool(_mtp_weights(_source_of(_checkpoint_of(run))))


def _mtp_weights(source: Path) -> dict[str, Tensor]:
    """Returns the weights of trained MTP layers, by their names among the layers."""
    if not (source / METADATA_FILE).is_file():
        return {}
    names = [name for name in saved_tensors(source) if name.startswith(MTP)]
    weights = _whole_weights(source, None) if names else {}
    return {name.removeprefix(MTP): weights[name] for name in names}


def export_adapters(
    run: Path,
    target: Path,
    dtype: torch.dtype | None = None,
    base: str | None = None,
) -> Path:
    """Writes the adapters of a run, or of the checkpoint ``run``, as peft loads them.

    ``PeftModel.from_pretrained(base, target)`` is then the trained model. Neither peft nor the base
    is needed here. The tokenizer is left out: peft's auto classes would resize the embedding to it.

    Args:
        target: a new directory.
        dtype: dtype of the written adapters; by default the one in which they are saved.
        base: the path of the model that the run began with, which is written down.

    Raises:
        UserError: there is no checkpoint, it has no adapters, or something is in ``target``.
    """
    checkpoint = _checkpoint_of(run)
    _refuse(next(iter(_inside(target)), None))
    source = checkpoint / WEIGHTS
    if not (source / ADAPTERS).is_file():
        raise UserError(f"{checkpoint} has no adapters, wanted that of a run with model.lora.rank")
    config = read_json_object(source / ADAPTERS)
    if not config:
        raise DamagedFileError(f"{source / ADAPTERS} cannot be read: wanted a JSON object")
    config |= {"task_type": "CAUSAL_LM", "inference_mode": True}
    config["base_model_name_or_path"] = base
    tensors = {
        f"base_model.model.{name.replace('.default.', '.')}": weight.contiguous()
        for name, weight in _whole_weights(source, dtype).items()
    }

    def write(directory: Path) -> None:
        directory.mkdir()
        write_json(directory / ADAPTERS, config)
        save_file(tensors, directory / ADAPTER_WEIGHTS, metadata={"format": "pt"})

    _write(target, write)
    return target


def _source_of(checkpoint: Path) -> Path:
    """Returns the folder of a checkpoint that has the model."""
    return checkpoint / WEIGHTS if is_sharded(checkpoint) else checkpoint


def _trained(
    checkpoint: Path, dtype: torch.dtype | None, base: Callable[[], "PreTrainedModel"] | None
) -> tuple["PreTrainedModel", dict[str, Tensor]]:
    """Returns the model of a checkpoint, perhaps without values, and its whole weights."""
    source = _source_of(checkpoint)
    if (source / ADAPTERS).is_file():
        if base is None:
            raise UserError(f"{checkpoint} has adapters alone; wanted the model that they are for")
        return _merged(source, base(), dtype)
    if is_sharded(checkpoint):
        model, weights = _empty_model(source, dtype), _whole_weights(source, dtype)
        weights = {name: w for name, w in weights.items() if not name.startswith(MTP)}
        _check_names(checkpoint, model, weights)
        return model, weights
    model = load_checkpoint(checkpoint, dtype=dtype)
    return model, model.state_dict()


def _checkpoint_of(run: Path) -> Path:
    checkpoint = run if (run / STATE_FILE).is_file() else run / CHECKPOINT
    if not (checkpoint / STATE_FILE).is_file():
        raise UserError(f"no checkpoint in {run}: {checkpoint / STATE_FILE} is missing")
    return checkpoint


def _refuse(foreign: Path | None) -> None:
    if foreign is not None:
        raise UserError(f"{foreign} would be overwritten; wanted a new directory")


def _inside(path: Path) -> list[Path]:
    """Returns what ``path`` holds, or itself if it is no directory."""
    if not os.path.lexists(path):
        return []
    return list(path.iterdir()) if path.is_dir() else [path]


def _write(target: Path, write: Callable[[Path], None]) -> None:
    """Lets ``write`` fill a directory that becomes ``target``, whole or not at all.

    ``target`` is replaced if it exists; the caller has checked that it may be.
    """
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove(temporary)
        write(temporary)
        sync_directory(temporary)
        replace_directory(temporary, target)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{target} cannot be written: {one_line(error)}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _whole_weights(directory: Path, dtype: torch.dtype | None) -> dict[str, Tensor]:
    weights = {
        name: torch.empty_like(weight, device="cpu")
        for name, weight in saved_tensors(directory).items()
    }
    try:
        load_tensors(directory, weights, alone=True)
    except PartError as error:
        raise DamagedFileError(f"{directory} cannot be read: {error}") from error
    return _cast(weights, dtype)


def _cast(weights: dict[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    for name, weight in weights.items():
        if dtype is not None and weight.is_floating_point():
            weights[name] = weight.to(dtype)
    return weights


def _merged(
    directory: Path, base: "PreTrainedModel", dtype: torch.dtype | None
) -> tuple["PreTrainedModel", dict[str, Tensor]]:
    """Returns an empty model and the weights of ``base`` with the adapters in ``directory``."""
    try:
        import peft
    except ImportError as error:
        raise UserError(f"{directory} has LoRA adapters, which need peft: {error}") from error
    adapters = _whole_weights(directory, None)
    try:
        insert_adapters(base, peft.LoraConfig.from_pretrained(str(directory)))
    except (OSError, TypeError, ValueError) as error:
        raise UserError(f"{directory}: its adapters do not fit the model: {error}") from error
    own = {name: weight for name, weight in base.named_parameters() if ".lora_" in name}
    check_same_shapes(directory, shapes_of(adapters), shapes_of(own))
    for name, weight in own.items():
        weight.data = adapters[name]
    weights = _cast(merged_weights(base), dtype)
    # A tied head with an adapter is another matrix than the embedding.
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    tied = embedding.weight is head.weight and not is_adapted(head)
    return _empty_model(directory, next(iter(weights.values())).dtype, tied=tied), weights


def _empty_model(
    directory: Path, dtype: torch.dtype | None, *, tied: bool | None = None
) -> "PreTrainedModel":
    """Returns the model that the configuration describes, without values."""
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    try:
        register_own_class(directory)
        config = AutoConfig.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
        if tied is not None:
            config.tie_word_embeddings = tied
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                config, dtype=dtype or config.dtype, trust_remote_code=False
            )
        if (directory / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(
                directory, local_files_only=True
            )
    except Exception as error:  # transformers raises many types for a bad file
        raise DamagedFileError(f"{directory} cannot be read: {one_line(error)}") from error
    return model


def _check_names(checkpoint: Path, model: "PreTrainedModel", weights: dict[str, Tensor]) -> None:
    """Raises unless the weights are the model's; of tied ones only one is among them."""
    wanted = {
        name: weight
        for name, weight in model.state_dict().items()
        if name in weights or not model.config.tie_word_embeddings
    }
    check_same_shapes(checkpoint, shapes_of(weights), shapes_of(wanted))
