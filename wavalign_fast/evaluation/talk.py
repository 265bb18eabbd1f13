"""How a model is talked to: as it was trained, unless the command says otherwise."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from wavalign_fast.errors import UserError, naming
from wavalign_fast.models.families.dialogue_file import KEYS, read_dialogue_file
from wavalign_fast.models.families.interface import DialogueOptions, PromptStyle
from wavalign_fast.speech.channels import ChannelRule
from wavalign_fast.train.owned_files import CHECKPOINT, CONFIG_FILE, EXPORTED
from wavalign_fast.train.run_directory import read_run_config


@dataclass(frozen=True, kw_only=True)
class Talk:
    """What prompts are made of; ``None`` where nothing is said, then the defaults hold."""

    system: str | None = None
    """System message of prompts that have none of their own; empty for none."""
    family: str | None = None
    """Name or file of the family, or ``none``; by default the one that the files tell."""
    ratio: tuple[int, ...] | None = None
    prompt_style: PromptStyle | None = None
    channel: ChannelRule | None = None
    """Of sound with several."""

    def or_as_trained(self, directory: Path) -> "Talk":
        """Takes what is not said from the run of a model, or from the file of an exported one.

        Raises:
            UserError: the run's configuration or the file cannot be used.
        """
        trained = {key: value for key, value in _trained(directory).items() if key in KEYS}
        if "ratio" in trained and trained["ratio"] is not None:
            trained["ratio"] = tuple(trained["ratio"])
        unsaid = [one.name for one in fields(self) if getattr(self, one.name) is None]
        return replace(self, **{key: trained[key] for key in unsaid if key in trained})

    @property
    def options(self) -> DialogueOptions:
        """The options of a family."""
        with naming("--prompt-style"):
            return DialogueOptions(ratio=self.ratio, prompt_style=self.prompt_style or "row")

    def flags(self) -> dict[str, Any]:
        """Returns what is said, by the options of the command."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {f"--{name.replace('_', '-')}": value for name, value in values.items()}

    def check_unsaid(self, asked: str) -> None:
        """Raises ``UserError`` for what only a model of a family can honour.

        Args:
            asked: what is asked instead, for the message.
        """
        for name in ("ratio", "prompt_style", "channel"):
            if (value := getattr(self, name)) is not None:
                raise UserError(
                    f"--{name.replace('_', '-')}: {value} given for {asked}, wanted a model of a "
                    "known family, or none of this option"
                )


def is_run(directory: Path) -> bool:
    """Whether a directory is that of a run, and no model's."""
    return (directory / CONFIG_FILE).is_file() and not (directory / "config.json").is_file()


def _trained(directory: Path) -> Mapping[str, Any]:
    """Returns the options of the recipe that a model was trained with, none if nothing tells."""
    if is_run(directory):
        return read_run_config(directory).task
    inside = directory.name in (CHECKPOINT, EXPORTED) and is_run(directory.parent)
    return _trained(directory.parent) if inside else read_dialogue_file(directory)
