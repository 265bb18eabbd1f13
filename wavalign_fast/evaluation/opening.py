"""Opens the model that is asked: a transformers directory, or the directory of a run."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from wavalign_fast.errors import UserError, user_input
from wavalign_fast.evaluation.chat_model import ChatModel
from wavalign_fast.evaluation.model_files import ModelFiles
from wavalign_fast.evaluation.prompts import file_digest
from wavalign_fast.evaluation.run import Asked
from wavalign_fast.models import load_checkpoint
from wavalign_fast.recipes.dialogue.options import NO_TEMPLATE, TOKENIZER, Options
from wavalign_fast.train.export import model_directory
from wavalign_fast.train.owned_files import CONFIG_FILE
from wavalign_fast.train.run_directory import read_run_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NO_SPEECH = "none"


@dataclass(frozen=True, kw_only=True)
class Opening:
    """Which model is opened, and how it is talked to."""

    directory: Path
    system: str | None = None
    chat_template: str = TOKENIZER
    speech: str = "<|audio_0|>"
    dtype: str | None = None
    device: str | None = None


def open_model(opening: Opening, *, cache: Path) -> tuple[Asked, dict[str, Any]]:
    """Returns the model, and the settings on which its answers depend, by the command's options.

    The weights are hashed here, and loaded when a prompt is asked.

    Raises:
        UserError: the directory is not a model's, or an option does not fit it.
    """
    weights, files = _directories(opening.directory)
    options = Options(
        data="",
        chat_template=opening.chat_template,
        speech=[] if opening.speech == NO_SPEECH else opening.speech,
    )
    speaker = ChatModel(files, system=opening.system, options=options)
    digests = ModelFiles(weights, cache).digests()
    device = _device(opening.device)
    dtype = None if opening.dtype is None else getattr(torch, opening.dtype)

    def load() -> "PreTrainedModel":
        return load_checkpoint(weights, dtype=dtype).to(device).eval()

    settings = {
        **digests,
        "--system": opening.system,
        "--chat-template": _template_digest(opening.chat_template),
        "--speech": opening.speech,
        "--dtype": opening.dtype,
    }
    return Asked(speaker, load, digests["weights"]), settings


def _directories(directory: Path) -> tuple[Path, Path]:
    """Returns the directory of the weights, and that of the tokenizer."""
    if not directory.is_dir():
        raise UserError(f"--model: no such directory: {directory}")
    is_run = (directory / CONFIG_FILE).is_file() and not (directory / "config.json").is_file()
    if not is_run:
        return directory, directory
    config = read_run_config(directory)
    if config.model.path is None:
        raise UserError(
            f"--model: the recipe {config.recipe} of {directory} has a model of its own, without a "
            "tokenizer; wanted a run that began with model.path"
        )
    return model_directory(directory), Path(config.model.path).expanduser()


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
