"""Parts of prompts, targets and answers that families share."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from wavalign_fast.data.interleave import interleave
from wavalign_fast.errors import UserError, shorten, shown
from wavalign_fast.models.families.interface import (
    AUDIO_TAG,
    IGNORE,
    Answer,
    Audio,
    AudioSpan,
    FamilyFiles,
    FamilyLayout,
    Message,
    Prompt,
)

ROLES = ("system", "user", "assistant")


class Row:
    """Ids of a row as they are put together, with labels and places of continuous audio."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.labels: list[int] = []
        self.spans: list[AudioSpan] = []

    def add(self, ids: Sequence[int], *, scored: bool = False) -> None:
        """Appends ids; those that are ``scored`` are labels too."""
        self.ids += ids
        self.labels += ids if scored else [IGNORE] * len(ids)

    def add_vectors(self, audio: int, count: int, placeholder: int, offset: int = 0) -> None:
        """Appends ``count`` positions that take vectors of an audio, from ``offset`` on."""
        span = AudioSpan(audio=audio, first=len(self.ids), count=count, offset=offset)
        self.spans.append(span)
        self.add([placeholder] * count)

    def prompt(self) -> Prompt:
        """Returns what was put together."""
        return Prompt(ids=self.ids, labels=self.labels, spans=tuple(self.spans))


class Turn(NamedTuple):
    """A message of a dialogue with its audios."""

    role: str
    parts: list[str]
    """Its text between the audios, one part more than audios."""
    audios: Sequence[Audio]
    first: int
    """Number of its first audio in the dialogue."""

    @property
    def codes(self) -> Sequence[int] | None:
        """What an assistant's turn speaks, ``None`` if it is text alone."""
        return self.audios[0].codes or () if self.audios else None


def turns(messages: Sequence[Message], audios: Sequence[Audio]) -> Iterator[Turn]:
    """Yields the messages with their audios.

    Raises:
        UserError: as ``check_dialogue``, or an assistant's turn has several audios.
    """
    check_dialogue(messages, audios)
    heard = 0
    for message in messages:
        parts = message["content"].split(AUDIO_TAG)
        own = audios[heard : heard + len(parts) - 1]
        if message["role"] == "assistant" and len(own) > 1:
            raise UserError(f"an assistant's turn has {len(own)} audios, wanted at most one")
        yield Turn(message["role"], parts, own, heard)
        heard += len(own)


def check_dialogue(messages: Sequence[Message], audios: Sequence[Audio]) -> None:
    """Raises ``UserError`` for an unknown role, or another number of tags than of audios."""
    for number, message in enumerate(messages):
        if message["role"] not in ROLES:
            raise UserError(
                f"message {number} has the role {shown(message['role'])}, wanted one of "
                f"{', '.join(ROLES)}"
            )
    tags = sum(message["content"].count(AUDIO_TAG) for message in messages)
    if tags != len(audios):
        raise UserError(f"{tags} tags {AUDIO_TAG} for {len(audios)} audios, wanted one for each")


def check_ends_with_user(messages: Sequence[Message]) -> None:
    """Raises ``UserError`` unless a user has the last turn."""
    role = messages[-1]["role"] if messages else None
    if role != "user":
        raise UserError(f"the prompt ends with the role {role!r}, wanted a user's turn")


def text_ids(files: FamilyFiles, text: str) -> list[int]:
    """Tokenises text of a message.

    Raises:
        UserError: it holds a token that is no text, such as one that ends a turn.
    """
    ids: list[int] = files.tokenizer(text, add_special_tokens=False)["input_ids"]
    for index in ids:
        if index in files.layout.special or is_code(files.layout, index):
            token = files.tokenizer.convert_ids_to_tokens(index)
            raise UserError(f"text {shorten(text)!r} holds the token {token}, which is no text")
    return ids


def is_code(layout: FamilyLayout, index: int) -> bool:
    """Whether an id stands for a code."""
    return layout.first_code <= index < layout.first_code + layout.codebook_size


def code_ids(layout: FamilyLayout, codes: Sequence[int] | None, whose: str) -> list[int]:
    """Returns the ids of codes.

    Args:
        whose: names the audio in the error.

    Raises:
        UserError: there are no codes, or one is not in the codebook.
    """
    if not codes:
        raise UserError(f"{whose} has no codes ({codes}), wanted at least one")
    for code in codes:
        if not 0 <= code < layout.codebook_size:
            raise UserError(f"{whose} has code {code}, wanted 0 to {layout.codebook_size - 1}")
    return [layout.first_code + code for code in codes]


def mixed(
    files: FamilyFiles,
    texts: Sequence[str],
    codes: Sequence[int] | None,
    ratio: Sequence[int],
    *,
    begin: int | None = None,
    end: int | None = None,
) -> list[int]:
    """Returns the ids of an answer's text and codes by turns; see ``interleave``.

    Raises:
        UserError: a text holds a token that is no text, or a code is not in the codebook.
    """
    words = [index for text in texts for index in text_ids(files, text)]
    speech = [] if codes is None else code_ids(files.layout, codes, "the answer's audio")
    return interleave(words, speech, ratio, begin=begin, end=end)


def check_says_something(text: str | None, codes: Sequence[int] | None) -> None:
    """Raises ``UserError`` for an answer without text and codes."""
    if not text and codes is None:
        raise UserError("the answer has neither text nor codes, wanted one of them")


def vectors_of(audio: Audio, number: int) -> int:
    """Returns how many vectors stand for an audio that is heard in one piece.

    Raises:
        UserError: it has none, or several pieces.
    """
    if len(audio.positions) != 1 or audio.positions[0] < 1:
        raise UserError(
            f"audio {number} has the positions {tuple(audio.positions)}, wanted one number: how "
            "many vectors the encoder makes of it"
        )
    return audio.positions[0]


def split_one_stream(files: FamilyFiles, ids: Sequence[int], second: Sequence[int] = ()) -> Answer:
    """Takes an answer apart in which text and codes share a stream."""
    layout = files.layout
    stops = [place for place, index in enumerate(ids) if index in layout.stop]
    own = ids[: stops[0]] if stops else ids
    return Answer(
        text=[i for i in own if i not in layout.special and not is_code(layout, i)],
        codes=[i - layout.first_code for i in own if is_code(layout, i)],
        ended=bool(stops),
    )
