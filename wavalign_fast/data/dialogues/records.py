"""A spoken dialogue, and the place in a file that it was read from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

AUDIO_TAG = "<|audio|>"
"""Stands in a turn where an audio is; the k-th tag of a dialogue belongs to its k-th audio."""
ROLES = ("system", "user", "assistant")
TASK_TYPES = ("s2s", "asr", "tts", "text", "unknown")


@dataclass(frozen=True, order=True)
class Place:
    """Where a record stands."""

    file: str
    line: int | None = None
    """Counted from 1; ``None`` in a ``datasets`` directory."""
    index: int | None = None
    """Position in a JSON list or a ``datasets`` directory, from 0; ``None`` in a JSONL file."""

    def __str__(self) -> str:
        line = "" if self.line is None else f":{self.line}"
        return f"{self.file}{line}" + ("" if self.index is None else f" [{self.index}]")


class Message(NamedTuple):
    """One turn."""

    role: str
    """``system``, ``user`` or ``assistant``."""
    content: str
    """Text, with ``AUDIO_TAG`` where an audio is."""

    @property
    def tags(self) -> int:
        """Number of audio tags."""
        return self.content.count(AUDIO_TAG)


class Scores(NamedTuple):
    """What a judge gave the two answers of a pair, on the judge's scale; ``None`` if unknown."""

    chosen: float | None = None
    rejected: float | None = None
    gap: float | None = None


NO_SCORES = Scores()


@dataclass(frozen=True, kw_only=True)
class Dialogue:
    """A prompt of one or more turns, with a demonstrated and perhaps a rejected answer.

    Paths are absolute or relative to the working directory.
    """

    place: Place
    id: Any
    """As it stands in the file; ``None`` without one."""
    messages: tuple[Message, ...]
    """The prompt; it ends with a turn that is not the assistant's."""
    audios: tuple[Path, ...]
    target_text: str | None = None
    """The demonstrated answer: the anchor of hybrid training, the chosen answer of DPO."""
    target_audio: Path | None = None
    rejected_text: str | None = None
    rejected_audio: Path | None = None
    task_type: str
    """One of ``TASK_TYPES``, or what the file says."""
    question_text: str
    """What the user asks, in words, for a judge; empty if it is only spoken."""
    question_text_raw: str | None = None
    history_text: str | None = None
    """The earlier turns in words."""
    scores: Scores = NO_SCORES
    record: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The JSON object that the dialogue was read from."""

    @property
    def tags(self) -> int:
        """Number of audio tags in the prompt."""
        return count_tags(self.messages)

    @property
    def is_pair(self) -> bool:
        """Whether it has a chosen and a rejected answer."""
        chosen = self.target_text is not None or self.target_audio is not None
        return chosen and (self.rejected_text is not None or self.rejected_audio is not None)


def count_tags(messages: tuple[Message, ...]) -> int:
    """Returns the number of audio tags in all turns."""
    return sum(message.tags for message in messages)
