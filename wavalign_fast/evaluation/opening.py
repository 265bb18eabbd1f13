"""Opens the model that is asked: a transformers directory, or the directory of a run."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from wavalign_fast.errors import UserError, naming, user_input
from wavalign_fast.evaluation.answering import Speaker
from wavalign_fast.evaluation.chat_model import ChatModel
from wavalign_fast.evaluation.family_model import FamilyModel
from wavalign_fast.evaluation.model_files import ModelFiles
from wavalign_fast.evaluation.prompts import file_digest
from wavalign_fast.evaluation.run import Asked
from wavalign_fast.evaluation.talk import Talk, is_run
from wavalign_fast.models import load_checkpoint
from wavalign_fast.models.families.checkpoint import load_family_model
from wavalign_fast.models.families.interface import Family
from wavalign_fast.models.families.registry import (
    FAMILY_KEY,
    find_family,
    named_family,
    storing_family,
)
from wavalign_fast.models.json_files import read_config
from wavalign_fast.recipes.dialogue.options import NO_TEMPLATE, TOKENIZER, Options
from wavalign_fast.speech.codec import SpeechCodec
from wavalign_fast.train.export import model_directory
from wavalign_fast.train.run_directory import read_run_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NO_SPEECH = NO_FAMILY = "none"


@dataclass(frozen=True, kw_only=True)
class Opening:
    """Which model is opened, and how it is talked to."""

    directory: Path
    talk: Talk
    """What prompts are made of, as ``Talk.or_as_trained`` returns it."""
    chat_template: str = TOKENIZER
    speech: str = "<|audio_0|>"
    dtype: str | None = None
    device: str | None = None
    codec: SpeechCodec | None = None
    """Encodes the sound of prompts."""
    mtp: bool = False
    """Answer by turns of the model and its MTP layers, which are in its family's own files."""


def open_model(opening: Opening, *, cache: Path) -> tuple[Asked, dict[str, Any]]:
    """Returns the model, and the settings on which its answers depend, by the command's options.

    The weights are hashed here, and loaded when a prompt is asked.

    Raises:
        UserError: the directory is not a model's, or an option does not fit it.
    """
    weights, files = _directories(opening.directory)
    talk = opening.talk
    family = _family(files, talk)
    if opening.mtp and (family is None or storing_family(weights) is None):
        raise UserError(f"--mtp: {weights} has no MTP layers, wanted a family's own directory")
    speaker: Speaker
    if family is None:
        talk.check_unsaid("a model of no known family")
        options = Options(
            data="",
            chat_template=opening.chat_template,
            speech=[] if opening.speech == NO_SPEECH else opening.speech,
        )
        speaker = ChatModel(files, system=talk.system or None, options=options)
    else:
        speaker = FamilyModel(
            files, family, rows=_rows(files, family), talk=talk, codec=opening.codec,
            cache=cache, mtp=opening.mtp,
        )  # fmt: skip
    digests = ModelFiles(weights, cache).digests()
    device = _device(opening.device)
    dtype = None if opening.dtype is None else getattr(torch, opening.dtype)

    def load() -> "PreTrainedModel":
        if family is not None and storing_family(weights) is not None:
            return load_family_model(weights, family, dtype).to(device).eval()
        return load_checkpoint(weights, dtype=dtype).to(device).eval()

    settings: dict[str, Any] = {
        **digests,
        **talk.flags(),
        "--chat-template": _template_digest(opening.chat_template),
        "--speech": opening.speech,
        "--dtype": opening.dtype,
        "--family": None if family is None else family.NAME,
    }
    if opening.mtp:
        settings["--mtp"] = True
    return Asked(speaker, load, digests["weights"]), settings


def _directories(directory: Path) -> tuple[Path, Path]:
    """Returns the directory of the weights, and that of the tokenizer."""
    if not directory.is_dir():
        raise UserError(f"--model: no such directory: {directory}")
    if not is_run(directory):
        return directory, directory
    config = read_run_config(directory)
    if config.model.path is None:
        raise UserError(
            f"--model: the recipe {config.recipe} of {directory} has a model of its own, without a "
            "tokenizer; wanted a run that began with model.path"
        )
    return model_directory(directory), Path(config.model.path).expanduser()


def _family(directory: Path, talk: Talk) -> Family | None:
    """Returns the family that is named, or that the files tell surely; ``None`` for a plain model.

    Speech tokens alone are no sure sign: a plain model with a chat template may have them too.
    """
    if talk.family == NO_FAMILY:
        return None
    if talk.family is not None:
        with naming("--family"):
            return named_family(talk.family)
    with naming("--model"):
        sure = FAMILY_KEY in read_config(directory)
        return find_family(directory) if sure else storing_family(directory)


def _rows(directory: Path, family: Family) -> int:
    """Returns the rows of the model's embedding."""
    from wavalign_fast.models.meta_weights import weights_on_meta

    with weights_on_meta():
        model = family.build(read_config(directory), torch.float32)
    return int(model.get_input_embeddings().weight.shape[0])


def _template_digest(name: str) -> str:
    if name in (TOKENIZER, NO_TEMPLATE):
        return name
    with user_input("--chat-template"):
        return file_digest(Path(name))


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device: {name} cannot be used: {str(error).splitlines()[0]}") from error
    return device
