"""Parts of prompts, targets and answers that families share."""

from collections.abc import Sequence

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


def split_one_stream(layout: FamilyLayout, ids: Sequence[int]) -> Answer:
    """Takes an answer apart in which text and codes share a stream."""
    stops = [place for place, index in enumerate(ids) if index in layout.stop]
    own = ids[: stops[0]] if stops else ids
    return Answer(
        text=[i for i in own if i not in layout.special and not is_code(layout, i)],
        codes=[i - layout.first_code for i in own if is_code(layout, i)],
        ended=bool(stops),
    )
