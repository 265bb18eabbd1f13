"""The ids of a family's checkpoint, as losses, rollouts and metrics take them."""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from wavalign_fast.errors import UserError, naming
from wavalign_fast.models.families.checkpoint import open_family
from wavalign_fast.models.families.interface import (
    IGNORE,
    Answer,
    DialogueOptions,
    Family,
    FamilyFiles,
    Prompt,
)
from wavalign_fast.models.families.registry import FAMILIES, named_family, storing_family
from wavalign_fast.models.two_streams import TwoStreams
from wavalign_fast.recipes.dialogue.tokens import UNLIMITED
from wavalign_fast.recipes.wavalign.options import Options


class FamilyTokens:
    """Takes answers of a family apart, and says which ids are what.

    Raises:
        UserError: the directory is of no known family, or a file of it cannot be used.
    """

    def __init__(self, directory: Path, options: Options) -> None:
        chosen: Family | None = None
        if options.family is not None:
            with naming("task.family"):
                chosen = named_family(options.family)
        ratio = None if options.ratio is None else tuple(options.ratio)
        settings = DialogueOptions(ratio=ratio, prompt_style=options.prompt_style)
        self.family: Family
        self.files: FamilyFiles
        with naming("model.path"):
            told = storing_family(directory) if chosen and chosen.NAME in FAMILIES else None
            if told is not None and chosen is not None and told.NAME != chosen.NAME:
                raise UserError(
                    f"{directory} is of the family {told.NAME}, wanted {chosen.NAME}, the one of "
                    "task.family"
                )
            self.family, self.files = open_family(directory, chosen, settings)
        self.streams: TwoStreams | None = None
        if self.files.layout.second is None:
            self.layout = dataclasses.replace(
                self.files.layout.stream, boundary_as=options.boundary_as, eos_as=options.eos_as
            )
            self.pad_id = self.files.layout.stop[-1]
        else:
            if options.boundary_as != "speech":
                raise UserError(
                    f"task.boundary_as: {options.boundary_as} given, wanted speech: "
                    f"{self.family.NAME} has no tokens around the speech of an answer"
                )
            self.streams = TwoStreams(self.files.layout, options.eos_as)
            self.layout, self.pad_id = self.streams.layout, self.streams.forced

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the checkpoint."""
        return self.files.tokenizer

    @property
    def ends(self) -> frozenset[int]:
        """The ids that end an answer."""
        return frozenset(self.files.layout.stop) if self.streams is None else self.streams.ends

    @property
    def positions(self) -> int:
        """Maximum length of prompt and answer together, in ids; two streams have two a position."""
        positions = self.files.positions or UNLIMITED
        return positions if self.streams is None else 2 * positions

    def target(self, text: str | None, codes: Sequence[int] | None) -> tuple[int, ...]:
        """Returns the ids of an answer that says ``text`` and speaks ``codes``."""
        target = self.family.target(self.files, text, codes)
        return tuple(target.ids if self.streams is None else self.streams.target(target))

    def history(self, prompt: Prompt) -> tuple[int, ...]:
        """Returns the places of a prompt's ids that are labels."""
        if self.streams is not None:
            return tuple(self.streams.history(prompt))
        return tuple(place for place, label in enumerate(prompt.labels) if label != IGNORE)

    def split(self, ids: Sequence[int]) -> Answer:
        """Takes the ids of an answer apart."""
        if self.streams is not None:
            return self.family.split(self.files, *self.streams.apart(ids))
        return self.family.split(self.files, ids)

    def speech(self, ids: Iterable[int]) -> list[int]:
        """Returns those ids that stand for speech codes, in order."""
        first, size = self.files.layout.first_code, self.files.layout.codebook_size
        if self.streams is not None:
            first += self.streams.rows
        return [token for token in ids if first <= token < first + size]

    def text(self, ids: Sequence[int]) -> str:
        """Returns the words of an answer."""
        return self.words(self.split(ids))

    def words(self, answer: Answer) -> str:
        """Returns the words of an answer that was taken apart."""
        return str(self.tokenizer.decode(answer.text)).strip()
