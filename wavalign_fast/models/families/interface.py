"""What a family of spoken dialogue models provides, and the values that it exchanges.

A family is a Python module with the functions of ``Family``; a file of the user's own has the same
shape. Reading and writing weights follow from two of them, ``build`` and ``weights``:
``checkpoint.py`` has both. No function runs code that a checkpoint names.

A *row* is a whole dialogue: prompt, then target. Ids are lists of int, labels are ids or ``IGNORE``
where nothing is scored. Labels are not shifted: a label stands where its own id stands.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import torch

from wavalign_fast.errors import UserError
from wavalign_fast.losses import ModalityLayout
from wavalign_fast.models.families.weight_table import WeightTable

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

IGNORE = -100
AUDIO_TAG = "<|audio|>"
"""Stands in a message where an audio belongs; the k-th tag of a dialogue is its k-th audio."""

Message = Mapping[str, str]
"""``{"role": "system" | "user" | "assistant", "content": text with AUDIO_TAG}``."""

PromptStyle = Literal["row", "release"]


@dataclass(frozen=True, kw_only=True)
class FamilyLayout:
    """What the ids of a checkpoint mean.

    Args:
        stream: class of each id of the stream that the head of the language model scores.
        first_code: id of code 0 in the stream that has the codes.
        codebook_size: number of codes; code i has the id ``first_code + i``.
        stop: ids that end an answer.
        special: ids that stand for no text and no code: special tokens, and rows of no token.
        named: ids of further tokens, by a name of the family's own.
        second: class of each id of a second stream with its own head, ``None`` if there is none.
    """

    stream: ModalityLayout
    first_code: int
    codebook_size: int
    stop: tuple[int, ...]
    special: frozenset[int]
    named: Mapping[str, int] = field(default_factory=dict)
    second: ModalityLayout | None = None


@dataclass(frozen=True, kw_only=True)
class Audio:
    """An audio of a dialogue, as its family takes it.

    Args:
        codes: of the family's codec, ``None`` where they are not needed or not known.
        positions: how many positions each of its pieces fills with vectors of a continuous encoder;
            empty without such an encoder.
    """

    codes: Sequence[int] | None = None
    positions: Sequence[int] = ()


@dataclass(frozen=True, kw_only=True)
class AudioSpan:
    """Positions of a prompt that take vectors of a continuous encoder.

    Position ``first + i``, for i < ``count``, takes vector ``offset + i`` of audio ``audio``.
    """

    audio: int
    first: int
    count: int
    offset: int = 0


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A dialogue up to the answer.

    Args:
        ids: of all positions [P].
        labels: the ids of history answers, ``IGNORE`` elsewhere [P].
        spans: positions that take continuous audio.
        second_ids: of the second stream, at the same positions [P].
        second_labels: likewise.
    """

    ids: list[int]
    labels: list[int]
    spans: tuple[AudioSpan, ...] = ()
    second_ids: list[int] | None = None
    second_labels: list[int] | None = None


@dataclass(frozen=True, kw_only=True)
class Target:
    """An answer as it follows its prompt in a row.

    Args:
        ids: of all positions [T].
        labels: what is scored at them, ``IGNORE`` where nothing is [T].
        second_ids: of the second stream, at the same positions [T].
        second_labels: likewise.
    """

    ids: list[int]
    labels: list[int]
    second_ids: list[int] | None = None
    second_labels: list[int] | None = None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A sampled answer, taken apart.

    Args:
        text: ids of its text, without special tokens.
        codes: of its speech, from 0, in their order.
        ended: whether a stop id came.
    """

    text: list[int]
    codes: list[int]
    ended: bool


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a family samples by default. A temperature of 0 is greedy, a ``top_k`` of 0 is off."""

    temperature: float
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    max_new_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class DialogueOptions:
    """What a user may choose about rows.

    Args:
        ratio: sizes of text and speech chunks by turns, the last pair repeats; ``None`` for the
            family's own.
        prompt_style: "row" makes the prompt the beginning of the row that training scores;
            "release" builds it as the family's published inference code does.
        speech: asks for a spoken answer. A family whose prompts do not say so has one prompt.

    Raises:
        UserError: another style.
    """

    ratio: tuple[int, ...] | None = None
    prompt_style: PromptStyle = "row"
    speech: bool = True

    def __post_init__(self) -> None:
        if self.prompt_style not in get_args(PromptStyle):
            raise UserError(
                f"prompt_style is {self.prompt_style!r}, wanted one of "
                f"{', '.join(get_args(PromptStyle))}"
            )


DEFAULT_OPTIONS = DialogueOptions()


@dataclass(frozen=True, kw_only=True)
class FamilyFiles:
    """An opened directory: what the functions of its family read.

    Args:
        config: ``config.json``.
        generation: ``generation_config.json``, empty if there is none.
    """

    directory: Path
    config: Mapping[str, Any]
    generation: Mapping[str, Any]
    tokenizer: "PreTrainedTokenizerBase"
    layout: FamilyLayout
    options: DialogueOptions = DEFAULT_OPTIONS

    @property
    def positions(self) -> int | None:
        """Maximum length of prompt and answer, as the config or that of a part of it says."""
        for part in (self.config, *(self.config.get(f"{name}_config") for name in ("text", "llm"))):
            for key in ("max_position_embeddings", "seq_length"):
                if isinstance(part, Mapping) and isinstance(part.get(key), int):
                    return int(part[key])
        return None


class Family(Protocol):
    """A module of this shape is a family. Mistakes in the files are ``UserError``."""

    NAME: str

    def detect(self, config: Mapping[str, Any], tokens: Collection[str]) -> int:
        """Says how sure it is that a directory is of this family: ``evidence``, 0 for "is not".

        ``tokens`` are the added tokens of its tokenizer.
        """

    def load_tokenizer(
        self, directory: Path, config: Mapping[str, Any]
    ) -> "PreTrainedTokenizerBase":
        """Builds the tokenizer from its files."""

    def layout(
        self, config: Mapping[str, Any], tokenizer: "PreTrainedTokenizerBase"
    ) -> FamilyLayout:
        """Derives the ids from the tokenizer, and refuses one that does not fit ``config``."""

    def build(self, config: Mapping[str, Any], dtype: torch.dtype) -> "PreTrainedModel":
        """Builds the native model with any weights; the caller may put them on the meta device."""

    def weights(
        self, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
    ) -> WeightTable:
        """Says where the files have each weight of the native model, and what else they have.

        ``shapes`` are the names and shapes of the native model's weights.
        """

    def prompt(
        self, files: FamilyFiles, messages: Sequence[Message], audios: Sequence[Audio]
    ) -> Prompt:
        """Builds the prompt of a dialogue that ends with a user's turn."""

    def target(self, files: FamilyFiles, text: str | None, codes: Sequence[int] | None) -> Target:
        """Builds the answer that says ``text`` and speaks ``codes``; one may be ``None``."""

    def split(self, files: FamilyFiles, ids: Sequence[int], second: Sequence[int] = ()) -> Answer:
        """Takes the ids after the prompt apart, up to the first that ends the answer."""

    def sampling(self, files: FamilyFiles) -> Sampling:
        """Returns the family's defaults; the stop ids are ``files.layout.stop``."""

    def codec(self, files: FamilyFiles) -> str:
        """Names the speech codec of the codes."""


FUNCTIONS = tuple(name for name in vars(Family) if not name.startswith("_") and name != "NAME")
"""Names of the functions that a family has."""


EVIDENCE = {"architecture": 4, "model_type": 3, "key": 2, "tokens": 1}
"""What tells a family, the surest first."""


def evidence(
    config: Mapping[str, Any],
    *,
    architectures: Collection[str] = (),
    model_types: Collection[str] = (),
    keys: Collection[str] = (),
) -> int:
    """Returns how sure ``config`` tells a family: by class, by type, or by keys that all stand."""
    named = config.get("architectures")
    if isinstance(named, list) and named and named[0] in architectures:
        return EVIDENCE["architecture"]
    if config.get("model_type") in model_types:
        return EVIDENCE["model_type"]
    return EVIDENCE["key"] if keys and all(key in config for key in keys) else 0
